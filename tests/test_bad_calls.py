"""A wrong argument of any public function is refused in one sentence, and leaves nothing behind."""

import inspect
import math
import shutil
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings, strategies as st
from torch import nn

import trebuchet as tb
import trebuchet.paper.beyond
from trebuchet._doors import door
from trebuchet.errors import InputError

from .bad_calls import GOOD, arguments, doors, outcome
from .junk import ENDS, JUNK, NEAR, NUMBERS
from .specimens import runs

ARGUMENTS = arguments()
SIBLINGS: dict[str, list[str]] = {}
for _name, _argument in ARGUMENTS:
    SIBLINGS.setdefault(_name, []).append(_argument)


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty folder to stand in, and no network."""

    def no_network(*args: object, **settings: object) -> None:
        raise OSError("no network")

    monkeypatch.setattr("trebuchet.data.images.fetch_openml", no_network)
    monkeypatch.chdir(tmp_path)


@st.composite
def bad_call(draw: st.DrawFn) -> tuple[str, dict[str, str]]:
    """A door, and junk for two of its arguments: of any kind, or nearly right."""
    name = draw(st.sampled_from([name for name, several in SIBLINGS.items() if len(several) > 1]))
    chosen = draw(st.lists(st.sampled_from(SIBLINGS[name]), min_size=2, max_size=2, unique=True))
    junk = {}
    for key in sorted(chosen):
        kinds = NEAR.get(key, NUMBERS) if draw(st.booleans()) else JUNK
        junk[key] = draw(st.sampled_from(sorted(kinds)))
    return name, junk


def test_every_public_function_has_a_call_that_works() -> None:
    assert set(GOOD) == set(doors())
    for name, make in GOOD.items():
        taken = inspect.signature(doors()[name]).parameters
        any_keyword = any(p.kind is p.VAR_KEYWORD for p in taken.values())
        assert any_keyword or set(make()) <= set(taken), name


@pytest.mark.parametrize("name", sorted(GOOD))
def test_the_calls_that_work_do(name: str) -> None:
    assert outcome(name, {}) == ("returned", "")


def wrong(name: str, junk: dict[str, str]) -> list[str]:
    """What is wrong with how a call with junk ends: nothing where it returns, or is refused.

    A refusal is one sentence, and leaves nothing behind.
    """
    ended, said = outcome(name, junk)
    left = list(Path.cwd().iterdir())
    for path in left:  # what worked may leave what it was asked for
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    if ended == "bad":
        return [f"{name} with {junk}: {said[:300]}"]
    return [f"{name} with {junk} left {left}"] if left and ended != "returned" else []


SHARES = 4
"""Of the kinds that are no ends each argument meets one share, the next argument the next one."""


@pytest.mark.parametrize("name", sorted(SIBLINGS))
def test_a_wrong_argument_is_refused_in_one_sentence(name: str) -> None:
    """Every argument by itself, the same on every machine: no luck of the draw."""
    others = sorted(set(JUNK) - set(ENDS))
    found = []
    for argument in SIBLINGS[name]:
        share = ARGUMENTS.index((name, argument)) % SHARES
        for kind in dict.fromkeys([*ENDS, *NEAR.get(argument, ()), *others[share::SHARES]]):
            found += wrong(name, {argument: kind})
    assert not found, "\n".join(found)


@settings(
    max_examples=200, derandomize=True, deadline=None, database=None,
    suppress_health_check=list(HealthCheck),
)  # fmt: skip
@given(bad_call())
def test_two_wrong_arguments_are_refused_in_one_sentence(call: tuple[str, dict[str, str]]) -> None:
    assert wrong(*call) == []


# What the kinds of junk may not hit: cases that were handled badly, by kind.

X = torch.randn(6, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
DATA = X, X[:, :1]
WIDE = torch.ones(6, 5, dtype=torch.float64), X[:, :1]


def _net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 1)).double()


def _problem() -> tb.Problem:
    return tb.Problem(lambda seed: tb.MLP.draw(1, 4, generator=seed), "half_mse", ([[1.0]], [0.0]))


def _scan(**changes: Any) -> tb.Scan:
    return tb.scan(**{"model": _net(), "loss": "mse", "data": DATA, "horizon": 10, **changes})


def _sweep(**changes: Any) -> Any:
    return tb.sweep(_problem(), **{"lr_ratio": [1.0], "steps": 3, "chunk": 1, **changes})


def _eigen(**changes: Any) -> Any:
    return tb.top_eigen(**{"model": _net(), "loss": "mse", "data": DATA, **changes})


def _early(**changes: Any) -> Any:
    return tb.early_constants(**{"model": _net(), "loss": "mse", "data": DATA, **changes})


def _forward(**changes: Any) -> Any:
    return tb.forward_critical_rate(**{"model": _net(), "loss": "mse", "data": DATA, **changes})


def _edges(**changes: Any) -> Any:
    given = {"model": _net(), "loss": "half_mse", "data": DATA, **changes}
    return tb.edges(given.pop("model"), **given)


def _swept(**changes: Any) -> Any:
    given = {"model": _net(), "loss": "mse", "data": DATA, **changes}
    return tb.sweep(given.pop("model"), lr=[0.1], steps=3, **given)


DOORS: tuple[Callable[..., Any], ...] = (_scan, _eigen, _early, _forward, _swept, _edges)
"""Every door that takes a model, a loss and data, or a problem."""
SEEDED: tuple[Callable[..., Any], ...] = (_scan, _sweep, lambda **s: tb.paper.figure(6, **s))


@pytest.mark.parametrize("call", SEEDED)
@pytest.mark.parametrize("seeds", [[-1], -1, 0, [2**63], 2.0, "12", [True], [1, 1], [], {1: 2}])
def test_seeds_are_the_same_at_every_door(call: Callable[..., Any], seeds: object) -> None:
    words = r"seeds: expected a positive number, or different numbers, all of them whole and from 0"
    with pytest.raises(InputError, match=words):
        call(seeds=seeds)


@pytest.mark.parametrize("call", DOORS)
def test_data_of_another_width(call: Callable[..., Any]) -> None:
    with pytest.raises(InputError, match=r"model: .*\(RuntimeError: mat1 and"):
        call(data=WIDE)


@pytest.mark.parametrize("call", DOORS)
@pytest.mark.parametrize("model", [nn.Linear, None, 3, [nn.Linear(3, 1)], "net"])
def test_models_that_are_no_modules(call: Callable[..., Any], model: object) -> None:
    words = (
        r"(model|problem): expected a torch\.nn\.Module, a function of a seed that makes one, or a "
        r"trebuchet\.Problem, got"
    )
    with pytest.raises(InputError, match=words):
        call(model=model)


@pytest.mark.parametrize("call", DOORS)
@pytest.mark.parametrize(
    "model", [nn.ReLU(), nn.Sequential(), nn.Linear(3, 1).requires_grad_(False)]
)
def test_models_without_parameters(call: Callable[..., Any], model: nn.Module) -> None:
    with pytest.raises(InputError, match="no trainable parameter"):
        call(model=model)


@pytest.mark.parametrize("call", DOORS)
def test_a_model_without_values(call: Callable[..., Any]) -> None:
    with pytest.raises(InputError, match=r"model: its parameters are on the meta device"):
        call(model=_net().to("meta"))


@pytest.mark.parametrize("call", DOORS)
def test_a_function_of_a_seed_is_called_with_one(call: Callable[..., Any]) -> None:
    def broken(seed: int) -> nn.Module:
        raise KeyError(seed)

    with pytest.raises(InputError, match=r"model: .* at seed 0 it raised KeyError: 0; mend"):
        call(model=broken)
    with pytest.raises(InputError, match=r"model: expected a function of one argument, the seed"):
        call(model=lambda: _net())
    with pytest.raises(InputError, match=r"model: .* to a torch\.nn\.Module, it made 0"):
        call(model=lambda seed: seed)


class _Same:
    """What no comparison may be asked of."""

    def __eq__(self, other: object) -> bool:
        raise AssertionError

    __hash__ = None  # type: ignore[assignment]


@pytest.mark.parametrize("call", DOORS)
@pytest.mark.parametrize("name", ["loss", "data"])
@pytest.mark.parametrize("value", ["mse", DATA, np.eye(2), X, _Same()])
def test_nothing_stands_beside_a_problem(call: Callable[..., Any], name: str, value: Any) -> None:
    beside = {"loss": None, "data": None, name: value}
    with pytest.raises(InputError, match=f"{name}: expected nothing beside a Problem, which says"):
        call(model=tb.Problem(_net(), "half_mse", DATA), **beside)


@pytest.mark.parametrize("call", DOORS)
def test_the_class_of_a_loss(call: Callable[..., Any]) -> None:
    with pytest.raises(InputError, match=r"loss: expected a loss, got the class MSELoss; make one"):
        call(loss=nn.MSELoss)


def _own(**parts: Any) -> list[tb.Observable]:
    """An observable of a user's own."""
    mine: type[tb.Observable] = type("Mine", (tb.Observable,), {"name": "mine", **parts})
    return [mine()]


def _late(self: tb.Observable, model: nn.Module, problem: tb.Problem) -> float:
    """Fails once the model has moved."""
    now = sum(float(p.detach().square().sum()) for p in model.parameters())
    if now != vars(self).setdefault("first", now):
        raise ZeroDivisionError
    return now


NAMED: dict[str, tuple[Callable[[], Any], str]] = {
    "unknown keyword": (lambda: _scan(horizn=3), "scan: has no argument 'horizn'; .* 'horizon'?"),
    "no model": (lambda: tb.scan(), "scan: missing a required argument: 'model'"),  # type: ignore[call-arg]
    "too many": (lambda: tb.load("a", 2), "load: too many positional arguments"),  # type: ignore[call-arg, arg-type]
    "near": (lambda: _eigen(operator="hesian"), "operator: .*; did you mean 'hessian'?"),
    "observable": (lambda: _sweep(observables=["sparsty"]), "did you mean 'sparsity'?"),
    "a word for several": (lambda: _sweep(observables="sparsity"), "observables: expected a list"),
    "class of an observable": (
        lambda: _sweep(observables=[type(_own()[0])]),
        "observables: .* give instances, not the c",
    ),
    "observable called loss": (
        lambda: _sweep(observables=_own(name="loss")),
        "observables: 'loss' of Mine has another meaning in results; call it otherwise",
    ),
    "observable of a name of ours": (
        lambda: _sweep(observables=_own(name="accuracy")),
        "'accuracy' of Mine has another meaning",
    ),
    "two of a name": (
        lambda: _sweep(observables=[*_own(size=2, dim="a"), *_own()]),
        "observables: expected different names, got two observables called 'mine'",
    ),
    "two sizes": (
        lambda: _sweep(observables=[*_own(size=2, dim="a"), *_own(name="b", size=3, dim="a")]),
        "observables: expected one size of the dimension 'a', got 2 of 'mine' and 3 of 'b'",
    ),
    "observable that raises": (
        lambda: _sweep(observables=_own(measure=lambda *_: vars(tb)["a"])),
        "observables: 'mine' raised KeyError: 'a'; mend it, or let it raise .*UnavailableError",
    ),
    "observable that raises later": (
        lambda: _sweep(observables=_own(measure=_late)),
        "observables: 'mine' raised ZeroDivision",
    ),
    "observable of nothing": (
        lambda: _sweep(observables=_own(measure=lambda *_: None)),
        r"observables: expected a number from measure\(\) of 'mine', got None; return NaN",
    ),
    "observable of a row": (
        lambda: _sweep(observables=_own(measure=lambda *_: [1.0, 2.0])),
        r"observables: expected one number of each run from 'mine', got shape \(2,\)",
    ),
    "engine": (lambda: _sweep(engine="batch"), "engine: .* did you mean 'batched'?"),
    "optimizer": (lambda: _sweep(optimizer=3), "optimizer: expected"),
    "record": (lambda: _sweep(record=10), "record: expected a trebuchet.Recording, got 10"),
    "device": (lambda: _sweep(device="gpu"), "device: expected a device that this machine has"),
    "checkpoint": (lambda: _sweep(checkpoint=3), "checkpoint: expected a path"),
    "too long": (lambda: _sweep(steps=10**8), "record: expected at most .*Recording"),
    "far too long": (lambda: _sweep(steps=10**18), "steps: expected a positive number and at most"),
    "endless": (lambda: _scan(horizon=10**18), "horizon: expected at least 10 steps and at most"),
    "rates": (lambda: _sweep(lr_ratio=["1", "2"]), "lr_ratio: expected numbers"),
    "rate of 10**400": (lambda: _sweep(lr_ratio=[10**400]), "positive, finite rates, got inf"),
    "rtol": (lambda: _early(rtol=None), "rtol: expected a number from 1e-4 to 1, got None"),
    "delta": (lambda: _forward(delta="0.1"), "delta: expected a positive finite number, got '0.1'"),
    "params": (lambda: _eigen(params=3), "params: expected names or parameters, or a function"),
    "warm": (lambda: _eigen(warm=1.0), "warm: expected an earlier result of top_eigen"),
    "k": (lambda: _eigen(k=True), "k: expected a whole number"),
    "a frame": (
        lambda: tb.label({"loss": 1}),
        "ds: expected runs, a dataset with dims lr and seed",
    ),
    "axes": (lambda: tb.plots.phase_bar(runs(), ax=3), "ax: expected matplotlib axes"),  # type: ignore[arg-type]
    "figure four": (lambda: tb.paper.figure("four"), "number: expected a whole number"),  # type: ignore[arg-type]
    "figure 17": (lambda: tb.paper.figure(17), "number: expected a number from 1 to 16"),
    "figure 0": (lambda: tb.paper.figure(0), "number: expected a number from 1 to 16, got 0"),
    "figure 1.5": (lambda: tb.paper.figure(1.5), "number: expected a whole number"),  # type: ignore[arg-type]
    "path": (lambda: tb.load(3), "path: expected a path, as a string"),  # type: ignore[arg-type]
    "flag": (lambda: tb.save(runs(), "a", overwrite=1), "overwrite: expected True"),  # type: ignore[arg-type]
    "momentum": (lambda: tb.GradientDescent("0.9"), "momentum: expected 0 <= momentum < 1"),  # type: ignore[arg-type]
    "NaN": (lambda: tb.theory.edges.critical(math.nan), "top_eigenvalue: .* got nan"),
    "bool": (
        lambda: tb.theory.ceiling(True),
        "degree: expected a positive finite number, got True",
    ),
    "width of inputs": (lambda: tb.MLP.draw(3, 2, generator=0)(X[:, :2]), r"x: .* shape \(D, 3\)"),
    "huge numbers": (
        lambda: tb.theory.edges.effective([1e200], [[1.0]]),
        "e: expected numbers up to 1e.100 in size",
    ),
    "accumulate": (lambda: _scan(accumulate=10**300), "accumulate: .* and at most 1000000"),
    "endless scan": (
        lambda: tb.paper.beyond.divergence_edge(start=1e-300),
        "growth: expected at most 500 rates",
    ),
    "callback": (lambda: _scan(progress=lambda: None), "progress: .* with 2 arguments"),
}


@pytest.mark.parametrize("case", NAMED)
def test_the_argument_is_named_and_what_to_do(case: str) -> None:
    call, words = NAMED[case]
    with pytest.raises(InputError, match=words) as caught:
        call()
    assert "\n" not in str(caught.value)
    assert not list(Path.cwd().iterdir())


def test_numbers_of_all_kinds_are_numbers() -> None:
    for two in (2, 2.0, np.float32(2), np.int8(2), np.array(2.0), torch.tensor(2.0), Fraction(2)):
        assert tb.theory.edges.critical(two).lr == 1.0  # type: ignore[arg-type]
    plain = _sweep(lr_ratio=[1.0, 3.0], seeds=[1], steps=3)
    other = _sweep(
        lr_ratio=torch.tensor([1.0, 3.0]), seeds=np.array([1]), steps=torch.tensor(3),
        chunk=np.int64(1), tolerance=None, blowup=np.float64(1e8), span=np.True_,
        workers=np.int8(1),
    )  # fmt: skip
    np.testing.assert_array_equal(plain.loss, other.loss)
    assert plain.attrs["config_hash"] == other.attrs["config_hash"]


def test_a_rate_beyond_all_measure_diverges_and_is_no_error() -> None:
    found = tb.label(_sweep(lr_ratio=[1.0, 1e300]))
    assert found.phase.values[1, 0] == "divergent"


def test_a_function_that_raises_later_is_the_callers_own() -> None:
    def stop(products: int, *numbers: float) -> None:
        raise KeyError(products)

    with pytest.raises(KeyError):
        _eigen(on_step=stop, method="lanczos")


def test_a_door_needs_a_check_for_every_parameter() -> None:
    with pytest.raises(TypeError, match="parameters"):

        @door()
        def unchecked(x: int) -> int:
            return x
