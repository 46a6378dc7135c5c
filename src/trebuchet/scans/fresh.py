"""Runs from other initialisations than the model's own: what luck of the draw was in its runs."""

import copy
import itertools
from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import nn

from trebuchet.engine.advance import Engine
from trebuchet.engine.kernels.host import Host
from trebuchet.problem.afresh import afresh
from trebuchet.problem.bound import Bound
from trebuchet.problem.captured import captured
from trebuchet.problem.losses import ModelLoss
from trebuchet.problem.risk import is_finite
from trebuchet.problem.selection import select, unwrap

AT_MOST = 2
"""Initialisations besides the model's own: each is a copy of it."""
TRAINED = 0.8
"""A model whose loss is below this fraction of a fresh one's has been trained."""


class Fresh:
    """Makes engines whose runs start from other weights, one a seed, on the scan's data.

    Args:
        trained: The problem, bound to its module.
        engine: Its engine: the same plan, the same history, the same account of cost.
        seeds: Those that are taken.

    Attributes:
        seeds: Those of the engines made so far.
        why_not: Why there are no more.
    """

    def __init__(self, trained: Bound, engine: Engine, seeds: tuple[int, ...]) -> None:
        self._trained, self._engine = trained, engine
        self._unused = (seed for seed in itertools.count() if seed not in seeds)
        self.engines: dict[int, Engine] = {}
        self.why_not = ""

    @property
    def seeds(self) -> tuple[int, ...]:
        """Of the engines made so far."""
        return tuple(self.engines)

    def left(self) -> int:
        """How many more can be made, as far as is known."""
        return 0 if self.why_not else AT_MOST - len(self.engines)

    def engine(self, nth: int) -> tuple[int, Engine] | None:
        """Return a seed and its engine.

        Args:
            nth: Which, from 0; made if need be.

        Returns:
            None if there is no such initialisation; `why_not` says why.
        """
        while len(self.engines) <= nth and self.left():
            seed = next(self._unused)
            found = self._made(seed)
            if isinstance(found, str):
                self.why_not = found
                break
            self.engines[seed] = found
        return list(self.engines.items())[nth] if nth < len(self.engines) else None

    def _made(self, seed: int) -> Engine | str:
        problem, objective = self._trained.problem, self._trained.objective
        if problem.instance is not None:
            return "the optimizer was given with its state, which belongs to these weights"
        loss = objective.loss.fn if isinstance(objective.loss, ModelLoss) else objective.loss
        if _reaches(loss, objective.model):
            return "the loss reaches the model's own weights by itself"
        self._engine.host.load_start()  # some run's weights are in the model
        model = self._remade(seed) if problem.reseeds else afresh(objective.model, seed)
        if isinstance(model, str):
            return model
        params = list(select(model).values())
        if [p.shape for p in params] != [p.shape for p in objective.params]:
            return "another seed makes a model of another shape"
        if all(map(torch.equal, params, objective.params)):
            return "another seed makes the same weights"
        other = replace(objective, model=model, params=params)
        host = Host(replace(self._trained, objective=other), check_law=False)
        own = self._engine.host.loss_first
        if not is_finite(host.loss_first):
            return "its fresh weights have no finite loss"
        if not problem.reseeds and own < TRAINED * host.loss_first:
            return "it seems to have been trained already"
        return Engine(
            host, self._engine.plan, history=self._engine.history, on_step=self._engine.on_step
        )

    def _remade(self, seed: int) -> nn.Module | str:
        model = unwrap(self._trained.problem.initial(seed))
        try:  # a function that keeps what it makes keeps it as it was
            return copy.deepcopy(model).train(self._trained.model.training)
        except Exception as error:  # a user's module may raise anything
            return f"it cannot be copied ({type(error).__name__})"

    def __iter__(self) -> Iterator[Engine]:
        return iter(self.engines.values())


def _reaches(loss: object, model: nn.Module) -> bool:
    """Whether a loss would go on using this model's weights, or a part's, when given another."""
    found = captured(loss)
    own = {id(t) for t in [*model.modules(), *model.parameters(), *model.buffers()]}
    parts = [part for module in found.modules for part in module.modules()]
    return any(id(thing) in own for thing in [*parts, *found.tensors])
