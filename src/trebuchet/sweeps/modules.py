"""A sweep of runs of any module, one by one on the module itself."""

import hashlib
import math
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any, cast

import numpy as np
from torch import nn
from torch.optim import Optimizer

from trebuchet._checks import shown
from trebuchet.curvature.top import top_eigen
from trebuchet.engine import lawful
from trebuchet.engine.kernels.base import Kernel
from trebuchet.engine.kernels.host import NTK, Host
from trebuchet.engine.kernels.module import DENSE_LIMIT, ModuleKernel
from trebuchet.engine.looks import least_rise
from trebuchet.errors import InputError
from trebuchet.observables.base import Observable, UnavailableError
from trebuchet.observables.sparsity import Sparsity
from trebuchet.observables.top_eigenvalue import TopEigenvalue
from trebuchet.problem.bound import bound
from trebuchet.problem.held_still import held_still
from trebuchet.problem.losses import ModelLoss
from trebuchet.problem.problem import Problem
from trebuchet.problem.schedules import advance, attach, describe_schedule
from trebuchet.problem.selection import unwrap
from trebuchet.problem.tree import leaves
from trebuchet.sweeps.binding import Binding, digest_into, usable

TOLD_APART = 100
"""Steps whose rates say which schedule it is."""

TOP_RTOL = 1e-4
"""To how much of itself λ₀ is measured where there is no dense matrix."""


class ModuleBinding(Binding):
    """Runs of any module, loss, optimizer and batches, one by one on the module itself.

    Args:
        problem: The problem.
        models: One a seed, or one for all.
        seeds: The seeds: initialisations where the problem has a function of the seed, and orders
            of the batches.
        stack: What ends when the modules are no longer needed.
        steps: Of a run.
        ratios: Whether rates are given as ratios, so that λ₀ is needed.
        watched: Whether λ is recorded, so that λ₀ is measured whatever it costs.
    """

    mixes_seeds = False
    bytes_per_run = 0
    most_in_a_stack = 1

    def __init__(
        self,
        problem: Problem,
        models: Sequence[nn.Module],
        seeds: Sequence[int],
        stack: ExitStack,
        *,
        steps: int,
        ratios: bool,
        watched: bool,
    ) -> None:
        self.problem, self.seeds, self.steps = problem, list(seeds), steps
        digest = hashlib.sha256()
        hosts: list[Host] = []
        for model in models:
            net = unwrap(model)
            problem = self.problem
            stack.enter_context(
                held_still(
                    net, mode="as_is", loader=problem.data, optimizer=problem.instance,
                    parameters_too=True, also=problem.loss,
                )
            )  # fmt: skip
            if not net.training:
                net.train()
            hosts.append(Host(stack.enter_context(bound(problem, net, steps=steps))))
            for t in [*net.parameters(), *net.buffers()]:
                digest_into(digest, t)
        self.hosts = [hosts[min(i, len(hosts) - 1)] for i in range(len(seeds))]
        first = self.hosts[0]
        for batch in first.stream.pool:
            for t in leaves((batch.args, batch.kwargs, batch.targets)):
                digest_into(digest, t)
        weight = first.objective.params[0]
        self.device, self.dtype = weight.device, weight.dtype
        self.free_looks = first.free_looks
        self._check_seeds()
        self.cheap = cheap = first.operator == NTK and _dense(first)
        self._delta: float | None = None
        top = {id(h): (_top(h) if cheap or ratios or watched else math.nan) for h in hosts}
        self.top = usable(np.array([top[id(h)] for h in self.hosts]), needed=ratios)
        self.start = np.array(
            [[h.loss_first, t] for h, t in zip(self.hosts, self.top, strict=True)]
        )
        self.fingerprint = digest.hexdigest()
        reason = first.law if isinstance(first.law, str) else ""
        self.facts = {
            "operator": first.operator,
            "n_parameters": sum(p.numel() for p in first.objective.params),
            "n_samples": first.stream.n_samples,
            "batch_size": first.stream.samples_per_step,
            **_beside(problem),
            "compared_on": first.stream.described(first.fixed),
            **lawful.facts(first.scaling, reason),
            "dtype": str(weight.dtype).removeprefix("torch."),
            "device": str(weight.device),
            "kernel": "ModuleKernel",
        }

    def _check_seeds(self) -> None:
        """One module, one order: a second seed would be the same run again."""
        first = self.hosts[0]
        ordered = first.stream.full_batch and not first.objective.randomised
        if len(self.seeds) > 1 and not self.problem.reseeds and ordered:
            msg = (
                "seeds: expected one, since the problem's model is a module with one "
                f"initialisation, and its data one batch, got {len(self.seeds)}; give Problem a "
                "function of the seed instead"
            )
            raise InputError(msg)

    def kernel(self, rates: Sequence[float], seeds: Sequence[int]) -> Kernel:
        """One run.

        Args:
            rates: Its η.
            seeds: The position of its seed.

        Returns:
            The run at its start.
        """
        ((rate,), (seed,)) = rates, seeds
        return ModuleKernel.at_start(self.hosts[seed], rate, self.seeds[seed])

    @property
    def optimizer(self) -> str:
        """What results call it."""
        return self.problem.optimizer_name

    def observables(self) -> tuple[Observable, ...]:
        """λ where it is the NTK of a batch small enough, and sparsity where there are ReLUs."""
        relus = self.free_looks and any(
            isinstance(m, nn.ReLU) for m in self.hosts[0].model.modules()
        )
        return (*((TopEigenvalue(),) if self.cheap else ()), *((Sparsity(),) if relus else ()))

    def delta(self, given: float | None) -> float:
        """As a scan has it."""
        if given is None and self._delta is None:
            self.hosts[0].load_start()
            self._delta = least_rise(self.hosts[0].trained, None)[0]
        return cast(float, self._delta if given is None else given)

    def trained(self) -> dict[str, Any]:
        """Batches, clipping, and what code has no name for: its settings, and rates it gives."""
        p, host = self.problem, self.hosts[0]
        host.load_start()
        probe = host.factory(host.objective.params, 1.0)
        groups = [
            {key: str(value) for key, value in group.items() if key != "params"}
            for group in probe.param_groups
        ]
        return {
            "batch_size": host.stream.samples_per_step, "accumulate": p.accumulate,
            "micro_batch": p.micro_batch, "clip": [p.clip_grad_norm, p.clip_grad_value],
            "autocast": str(p.autocast), "optimizer": groups,
            "schedule": [describe_schedule(p.schedule), *self._rates(probe)],
        }  # fmt: skip

    def _rates(self, probe: Optimizer) -> list[float]:
        """The first rates of a schedule: two functions of one name are told apart by them."""
        p, steps = self.problem, range(min(self.steps, TOLD_APART))
        if p.multiplier is not None:
            return [float(p.multiplier(t)) for t in steps]
        if p.scheduler is None:
            return []
        found, scheduler = [], attach(p.scheduler, probe)
        for _ in steps[:-1]:
            found.append(float(probe.param_groups[0]["lr"]))
            advance(scheduler)
        return found

    def notes(self) -> list[str]:
        """Of all seeds."""
        return list(dict.fromkeys(n for h in self.hosts for n in h.objective.notes))


def _beside(problem: Problem) -> dict[str, Any]:
    """What a step is made of beside its batch, where it is not the usual."""
    found = {
        "clip_grad_norm": problem.clip_grad_norm, "clip_grad_value": problem.clip_grad_value,
        "accumulate": None if problem.accumulate == 1 else problem.accumulate,
        "schedule": describe_schedule(problem.schedule) or None,
    }  # fmt: skip
    return {name: value for name, value in found.items() if value is not None}


def _dense(host: Host) -> bool:
    kernel = ModuleKernel.at_start(host, 1.0, 0)
    try:
        return kernel.residual().numel() <= DENSE_LIMIT
    except (UnavailableError, InputError):
        return False


def _top(host: Host) -> float:
    """λ₀ of a module at its start."""
    if host.operator == NTK:
        kernel = ModuleKernel.at_start(host, 1.0, 0)
        try:
            return float(kernel.top_eigenvalue()[0])
        except UnavailableError:  # too large
            pass
    host.load_start()
    operator: Any = "hessian" if isinstance(host.objective.loss, ModelLoss) else "ggn"
    with host.objective.autocast():
        found = top_eigen(host.model, host.objective.loss, host.closing, operator, rtol=TOP_RTOL)
    if not found.converged:
        msg = (
            f"lr_ratio: λ₀ was not found to {TOP_RTOL:g} ({shown(found)}); sweep over lr=, the "
            "rates themselves"
        )
        raise InputError(msg)
    return float(found.value)
