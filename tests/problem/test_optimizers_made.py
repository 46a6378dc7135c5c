"""Optimizers that are already made: every run gets one like them, and they are left alone."""

import copy
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW, Optimizer

import trebuchet as tb
from trebuchet.errors import InputError

F64 = torch.float64
Params = Sequence[nn.Parameter]


def _net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1)).double()


def _data() -> tuple[Tensor, Tensor]:
    x = torch.randn(24, 4, generator=torch.Generator().manual_seed(1), dtype=F64)
    return x, x[:, :1] * x[:, 1:2]


def _scan(net: nn.Module, optimizer: Any, **more: Any) -> tb.Scan:
    settings = {"horizon": 20, "seeds": 1, "curvature": "none", **more}
    return tb.scan(net, "mse", _data(), optimizer, **settings)


class Lookahead(Optimizer):
    """Wraps another: slow weights in an attribute, a counter, groups that are the other's."""

    def __init__(self, base: Optimizer, k: int = 3, alpha: float = 0.5) -> None:
        # As in the wild: the base class is not initialised, so that the groups can be shared.
        self.base, self.k, self.alpha, self.t = base, k, alpha, 0
        self.param_groups, self.defaults, self.state = base.param_groups, base.defaults, base.state
        self.slow = [[p.detach().clone() for p in g["params"]] for g in base.param_groups]

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        self.base.step(closure)
        self.t += 1
        if self.t % self.k == 0:
            with torch.no_grad():
                for group, slow in zip(self.param_groups, self.slow, strict=True):
                    for p, s in zip(group["params"], slow, strict=True):
                        s.lerp_(p, self.alpha)
                        p.copy_(s)


class AdEMAMix(Optimizer):
    """Two averages of the gradient, one of them kept in plain attributes."""

    def __init__(self, params: Iterable[nn.Parameter], lr: float) -> None:
        super().__init__(params, {"lr": lr})
        self.t = 0
        self.averages: dict[str, list[Tensor]] = {"slow": []}

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        del closure
        params = [p for g in self.param_groups for p in g["params"]]
        if not self.averages["slow"]:
            self.averages["slow"] = [torch.zeros_like(p) for p in params]
        self.t += 1
        with torch.no_grad():
            for p, slow in zip(params, self.averages["slow"], strict=True):
                slow.mul_(0.99).add_(p.grad, alpha=0.01)
                p.sub_(self.param_groups[0]["lr"] * (p.grad + slow / (1 - 0.99**self.t)))


class Gathering(SGD):
    """Only gathers gradients in its first two steps, as SOAP and silent warm-ups do."""

    def __init__(self, params: Iterable[nn.Parameter], lr: float) -> None:
        super().__init__(params, lr=lr)
        self.t = 0

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        self.t += 1
        if self.t > 2:
            super().step(closure)


class ScheduleFree(Optimizer):
    """SGD with averaging (Defazio et al., 2405.15682): trains at y, is evaluated at x."""

    def __init__(self, params: Iterable[nn.Parameter], lr: float, beta: float = 0.9) -> None:
        super().__init__(params, {"lr": lr, "beta": beta, "k": 0, "train_mode": False})

    def _to(self, training: bool) -> None:
        for group in self.param_groups:
            if group["train_mode"] is training:
                continue
            group["train_mode"] = training
            weight = 1 - group["beta"] if training else 1 - 1 / group["beta"]
            for p in group["params"]:
                if "z" in self.state[p]:
                    p.data.lerp_(self.state[p]["z"], weight)

    def train(self) -> None:
        self._to(True)

    def eval(self) -> None:
        self._to(False)

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        del closure
        for group in self.param_groups:
            if not group["train_mode"]:
                raise RuntimeError("call .train() before a step")
            for p in group["params"]:
                z = self.state[p].setdefault("z", p.detach().clone())
                c, beta = 1 / (group["k"] + 1), group["beta"]
                p.data.lerp_(z, c)
                p.data.add_(p.grad, alpha=group["lr"] * (beta * (1 - c) - 1))
                z.sub_(p.grad, alpha=group["lr"])
            group["k"] += 1


MAKERS: dict[str, Callable[[Params, float], Any]] = {
    "SGD": lambda p, r: SGD(p, lr=r, momentum=0.5),
    "Adam": Adam,
    "Lookahead": lambda p, r: Lookahead(SGD(p, lr=r, momentum=0.5)),
    "Lookahead of AdEMAMix": lambda p, r: Lookahead(AdEMAMix(p, lr=r)),
    "AdEMAMix": AdEMAMix,
    "gathering": Gathering,
    "schedule-free": ScheduleFree,
    "SGD beside Adam": lambda p, r: [SGD(p[:2], lr=r), Adam(p[2:], lr=r / 10)],
}  # fmt: skip


def _snapshot(optimizer: Any) -> Any:
    """Everything about optimizers, parameters by value."""
    if isinstance(optimizer, list):
        return [_snapshot(o) for o in optimizer]
    skipped = ("base",)
    found = {k: v for k, v in vars(optimizer).items() if k not in skipped and "hook" not in k}
    saved = {k: copy.deepcopy(v) for k, v in found.items() if k != "state"}
    saved["state"] = [copy.deepcopy(s) for s in optimizer.state.values()]
    if hasattr(optimizer, "base"):
        saved["base"] = _snapshot(optimizer.base)
    return saved


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor):
        return bool(torch.equal(a, b))
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(_same(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(_same, a, b))
    return bool(a == b)


@pytest.mark.parametrize("name", MAKERS)
def test_an_instance_is_as_its_class_and_stays_as_it_was(name: str) -> None:
    make, net = MAKERS[name], _net()
    made = make(list(net.parameters()), 0.3)
    before, weights = _snapshot(made), copy.deepcopy(net.state_dict())
    ours, theirs = _scan(net, made), _scan(net, make)
    pd.testing.assert_frame_equal(ours.run_table, theirs.run_table, rtol=1e-9)
    pd.testing.assert_frame_equal(ours.traces, theirs.traces, rtol=1e-9)
    assert _same(_snapshot(made), before)
    assert _same(dict(net.state_dict()), dict(weights))


def _train(net: nn.Module, made: Any, steps: int) -> list[float]:
    """A plain loop; the losses as their users see them, after every step."""
    x, y = _data()
    many = made if isinstance(made, list) else [made]
    losses = []
    for _ in range(steps):
        for o in many:
            if hasattr(o, "train"):
                o.train()
        net.zero_grad()
        torch.autograd.backward(nn.functional.mse_loss(net(x), y))
        for o in many:
            o.step()
        for o in many:
            if hasattr(o, "eval"):
                o.eval()
        losses.append(float(nn.functional.mse_loss(net(x), y).detach()))
    return losses


@pytest.mark.parametrize("name", MAKERS)
def test_runs_go_on_from_its_state_as_a_plain_loop_does(name: str) -> None:
    make, net = MAKERS[name], _net()
    made = make(list(net.parameters()), 0.02)
    _train(net, made, 5)
    before = _snapshot(made)
    found = _scan(net, made)
    assert _same(_snapshot(made), before)
    rate, seen = _longest(found)
    many = made if isinstance(made, list) else [made]
    for group in (g for o in many for g in o.param_groups):
        group["lr"] *= rate / 0.02
    losses = _train(net, made, 20)
    assert len(seen) > 8
    for step in seen.index[1:]:
        assert seen[step] == pytest.approx(losses[int(step) - 1], rel=1e-7)


def test_a_schedule_free_optimizer_in_train_mode_is_evaluated_first() -> None:
    net = _net()
    made = ScheduleFree(net.parameters(), lr=0.3)
    _train(net, made, 5)
    evaluated = _scan(net, made)
    made.train()
    training = {k: v.clone() for k, v in net.state_dict().items()}
    found = _scan(net, made)
    assert _same(dict(net.state_dict()), training)
    assert made.param_groups[0]["train_mode"]
    np.testing.assert_allclose(found.traces["loss"], evaluated.traces["loss"], rtol=1e-6)


def _longest(found: tb.Scan) -> tuple[float, "pd.Series[float]"]:
    """A rate that came furthest, and its losses by step."""
    traces = found.traces
    rate = float(traces["rate"].to_numpy()[traces["step"].to_numpy().argmax()])
    return rate, traces[traces["rate"] == rate].set_index("step")["loss"]


def _clipping(params: Params, rate: float, norm: float = 0.05) -> Optimizer:
    made = SGD(params, lr=rate)

    def clip(*_: object) -> None:
        nn.utils.clip_grad_norm_(params, norm)

    made.register_step_pre_hook(clip)
    return made


def test_clipping_is_the_same_by_hook_by_factory_and_by_argument() -> None:
    net = _net()
    scans = [
        _scan(net, _clipping(list(net.parameters()), 0.1), curvature="initial"),
        _scan(net, _clipping, curvature="initial"),
        _scan(net, "sgd", clip_grad_norm=0.05, curvature="initial"),
    ]
    plain = _scan(net, "sgd", curvature="initial")
    for one in scans:
        assert one.suggestion.rate == pytest.approx(scans[0].suggestion.rate, rel=1e-12)
        pd.testing.assert_frame_equal(one.run_table, scans[0].run_table)
        assert one.lr_crit == plain.lr_crit
    assert scans[0].suggestion.rate > 3 * plain.suggestion.rate
    assert "what its step hooks do left out" in scans[0].critical.convention
    assert "where gradients are not clipped (norm 0.05)" in scans[2].critical.convention
    assert scans[2].settings["clip_grad_norm"] == 0.05
    assert plain.settings["clip_grad_norm"] is None


@pytest.mark.parametrize("stacked", [False, True])
def test_clipping_by_value_and_norm_is_torch_s(stacked: bool) -> None:
    net = _net()
    found = _scan(
        net, "momentum", clip_grad_norm=0.1, clip_grad_value=0.05, stacked=stacked
    )  # fmt: skip
    rate, seen = _longest(found)
    assert len(seen) > 10
    x, y = _data()
    steps = SGD(net.parameters(), lr=rate, momentum=0.9)
    for t in range(1, 21):
        net.zero_grad()
        torch.autograd.backward(nn.functional.mse_loss(net(x), y))
        nn.utils.clip_grad_value_(net.parameters(), 0.05)
        nn.utils.clip_grad_norm_(net.parameters(), 0.1)
        steps.step()
        if t in seen.index:
            loss = float(nn.functional.mse_loss(net(x), y).detach())
            assert seen[t] == pytest.approx(loss, rel=1e-7)


def test_hooks_after_the_step_and_methods_of_the_optimizer_are_the_copy_s() -> None:
    class Shrinking(SGD):
        """Shrinks its own weights after every step, by a hook that is its method."""

        def __init__(self, params: Params, lr: float) -> None:
            super().__init__(params, lr=lr)
            self.steps = 0
            self.register_step_post_hook(self.shrink)

        def shrink(self, *_: object) -> None:
            self.steps += 1
            with torch.no_grad():
                for p in self.param_groups[0]["params"]:
                    p.mul_(1 - 0.1 / self.steps)

    net = _net()
    made = Shrinking(list(net.parameters()), 0.1)
    pd.testing.assert_frame_equal(_scan(net, made).run_table, _scan(net, Shrinking).run_table)
    assert made.steps == 0


def _patched(net: nn.Module) -> Optimizer:
    made: Any = SGD(net.parameters(), lr=0.1)
    original = made.step

    def step(closure: Any = None) -> None:
        nn.utils.clip_grad_norm_(net.parameters(), 0.05)
        original(closure)

    made.step = step
    return made  # type: ignore[no-any-return]


class Watching(SGD):
    """Keeps the module it belongs to, as second-order methods do for their hooks."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__(net.parameters(), lr=0.1)
        self.watched = {"net": net}


class Locked(SGD):
    """Holds what cannot be copied."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__(net.parameters(), lr=0.1)
        self.stream = (i for i in range(3))


class TwoSteps(SGD):
    """As SAM: a step makes two, and evaluates the loss between them."""

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        assert closure is not None, "SAM requires closure, but it was not provided"


REFUSED: dict[str, tuple[Callable[[nn.Module], Any], str]] = {
    "a patched step": (_patched, r"the step of this SGD was replaced on the instance"),
    "a patched step in a wrapper": (lambda n: Lookahead(_patched(n)), r"the step of this SGD was"),
    "a module": (Watching, r"this Watching holds a module \(its watched\)"),
    "a generator": (Locked, r"the stream of this Locked cannot be copied for every run"),
    "a closure": (lambda n: TwoSteps(n.parameters(), lr=0.1), r"its step needs a closure"),
    "the same twice": (
        lambda n: [SGD(n.parameters(), lr=0.1), Adam(list(n.parameters())[:1])],
        r"expected every parameter in one optimizer of the list, got one of shape \(8, 4\) in two",
    ),
    "no list of optimizers": (lambda n: [SGD(n.parameters(), lr=0.1), "adam"], r"got str in it"),
    "an empty list": (lambda n: [], r"expected a list of optimizers, got none in it"),
    "a list that maximises": (
        lambda n: [SGD(list(n.parameters())[:2], lr=0.1),
                   SGD(list(n.parameters())[2:], lr=0.1, maximize=True)],
        r"got maximize=True",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_a_copy_could_not_follow_is_refused_in_one_sentence(case: str) -> None:
    make, says = REFUSED[case]
    net = _net()
    before = copy.deepcopy(net.state_dict())
    with pytest.raises(InputError, match=says) as caught:
        _scan(net, make(net))
    assert str(caught.value).startswith("optimizer: ")
    assert "\n" not in str(caught.value)
    assert _same(dict(net.state_dict()), dict(before))


def test_an_optimizer_that_a_scheduler_belongs_to_is_only_copied() -> None:
    net = _net()
    made = SGD(net.parameters(), lr=0.1)
    scheduler = torch.optim.lr_scheduler.StepLR(made, 1)
    found = _scan(net, made)
    pd.testing.assert_frame_equal(found.run_table, _scan(net, SGD).run_table)
    assert made.param_groups[0]["lr"] == scheduler.get_last_lr()[0] == 0.1


def test_a_list_keeps_its_ratios_and_says_what_nobody_holds() -> None:
    net = _net()
    first, rest = list(net.parameters())[:1], list(net.parameters())[2:]
    both = [SGD(first, lr=0.2), AdamW(rest, lr=0.02)]
    found = _scan(net, both, curvature="initial")
    assert found.settings["optimizer"] == "SGD + AdamW"
    assert any("holds 3 of the model's 4 parameter tensors; the other 8" in n for n in found.notes)
    assert any("no closed form for several optimizers together" in n for n in found.notes)
    rate, seen = _longest(found)
    losses = _train(net, [SGD(first, lr=rate), AdamW(rest, lr=rate / 10)], 20)
    assert len(seen) > 10
    for step in seen.index[1:]:
        assert seen[step] == pytest.approx(losses[int(step) - 1], rel=1e-7)


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="torch has no Muon yet")
def test_muon_for_the_matrices_beside_adamw_for_the_rest() -> None:
    def make(params: Params, rate: float) -> list[Optimizer]:
        matrices = [p for p in params if p.ndim == 2]
        others = [p for p in params if p.ndim != 2]
        muon: Any = torch.optim.Muon  # type: ignore[attr-defined,unused-ignore]
        return [muon(matrices, lr=rate), AdamW(others, lr=rate / 10)]

    net = _net().float()
    x, y = (t.float() for t in _data())
    made = make(list(net.parameters()), 0.5)
    ours, theirs = (
        tb.scan(net, "mse", (x, y), o, horizon=20, seeds=1, curvature="none") for o in (made, make)
    )
    assert ours.suggestion.reliable
    assert ours.suggestion.rate == pytest.approx(theirs.suggestion.rate, rel=1e-3)
    assert (ours.settings["optimizer"], theirs.settings["optimizer"]) == ("Muon + AdamW", "make")


@pytest.mark.parametrize("argument", ["clip_grad_norm", "clip_grad_value"])
@pytest.mark.parametrize("value", [0, -1.0, float("nan"), float("inf"), "1", True])
def test_clipping_is_a_positive_number(argument: str, value: Any) -> None:
    with pytest.raises(InputError, match=rf"^{argument}: expected a positive finite number"):
        _scan(_net(), "sgd", **{argument: value})


@pytest.mark.parametrize("kind", ["adam", "rmsprop", "nadam", "adagrad"])
def test_an_epsilon_that_underflows_is_named(kind: str) -> None:
    net = nn.Linear(4, 1).half()
    x = torch.randn(8, 4, generator=torch.Generator().manual_seed(1)).half() / 1e4
    data = (x, x[:, :1])
    eps = {"adagrad": "1e-10"}.get(kind, "1e-08")
    says = f"ε = {eps} is zero in float16"
    # Squares of gradients of 1e-5 are 0 in float16 too.
    with pytest.raises(InputError, match=says) as caught:
        tb.scan(net, "mse", data, kind, horizon=10, seeds=1, curvature="none")
    assert "zero or not finite though the gradient is neither" in str(caught.value)
    larger = (1e4 * data[0], data[1] + 1)
    found = tb.scan(net, "mse", larger, kind, horizon=10, seeds=1, curvature="none")
    assert any(says in note for note in found.notes)
    other = partial(getattr(torch.optim, {"adam": "Adam", "rmsprop": "RMSprop", "nadam": "NAdam",
                                          "adagrad": "Adagrad"}[kind]), eps=1e-4)  # fmt: skip
    fine = tb.scan(net, "mse", data, other, horizon=10, seeds=1, curvature="none")
    assert not any("ε" in note for note in fine.notes)
