"""Losses that call the model: told from others by a trial, and the model's own."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import trebuchet as tb
from tests.problem.reference import draws, net, top
from trebuchet.errors import InputError


def test_a_function_of_model_and_batch_is_found_by_trial() -> None:
    x, y = draws((12, 3), (12, 1))
    model = net()
    right = top(model, lambda: F.mse_loss(model(x), y))

    def closure(m: nn.Module, b: Any) -> Tensor:
        return F.mse_loss(m(b[0]), b[1])

    assert tb.top_eigen(model, closure, (x, y), "hessian", rtol=1e-9).value == pytest.approx(right)
    assert tb.scan(model, closure, (x, y), horizon=20).lr_crit == pytest.approx(2 / right, rel=1e-4)
    assert tb.early_constants(model, closure, (x, y), train_steps=10).sharpness == pytest.approx(
        right, rel=1e-3
    )
    found = tb.forward_critical_rate(model, closure, (x, y))
    assert found.value == tb.forward_critical_rate(model, "mse", (x, y)).value
    wrapped = tb.ModelLoss(closure)
    assert tb.top_eigen(model, wrapped, (x, y), "hessian").value == pytest.approx(right, rel=1e-3)
    with pytest.raises(InputError, match=r"a closure .* has a Hessian but no ggn"):
        tb.top_eigen(model, closure, (x, y))


def test_what_can_be_called_neither_way_says_both() -> None:
    x, y = draws((12, 3), (12, 1))
    model = net()
    before = {k: v.clone() for k, v in model.state_dict().items()}

    def broken(m: Any, b: Any) -> Tensor:
        return m.nothing(b)  # type: ignore[no-any-return]

    for call in (
        lambda: tb.scan(model, broken, (x, y), horizon=20),
        lambda: tb.top_eigen(model, broken, (x, y), "hessian"),
        lambda: tb.early_constants(model, broken, (x, y)),
        lambda: tb.forward_critical_rate(model, broken, (x, y)),
    ):
        with pytest.raises(
            InputError, match=r"'Tensor' .*, or loss\(model, batch\), .*'Sequential'"
        ) as e:
            call()
        assert "\n" not in str(e.value)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_a_module_may_be_a_closure() -> None:
    class Penalty(nn.Module):
        def forward(self, model: nn.Module, batch: Any) -> Tensor:
            return F.mse_loss(model(batch[0]), batch[1])

    x, y = draws((12, 3), (12, 1))
    model = net()
    right = top(model, lambda: F.mse_loss(model(x), y))
    assert tb.top_eigen(model, Penalty(), (x, y), "hessian").value == pytest.approx(right, rel=1e-3)


class Output(dict[str, Any]):
    """As transformers return."""

    @property
    def loss(self) -> Any:
        return self["loss"]


class Own(nn.Module):
    """A model that says its own loss."""

    def __init__(self, form: str) -> None:
        super().__init__()
        self.layer, self.form = net(), form

    def forward(self, x: Tensor, labels: Tensor | None = None) -> Any:
        z = self.layer(x)
        loss = None if labels is None else F.mse_loss(z, labels)
        return {
            "output": Output(loss=loss, logits=z), "dict": {"loss": loss, "logits": z},
            "tuple": (loss, z), "scalar": loss, "logits": z,
        }[self.form]  # fmt: skip


@pytest.mark.parametrize("form", ["output", "dict", "tuple", "scalar"])
def test_none_is_the_models_own_loss(form: str) -> None:
    x, y = draws((20, 3), (20, 1))
    model = Own(form).double()
    right = top(model, lambda: F.mse_loss(model.layer(x), y))
    datas: list[Any] = [
        (x, y),
        {"x": x, "labels": y},
        ({"x": x}, y),
        [(x[:13], y[:13]), (x[13:], y[13:])],
    ]
    for data in datas:
        found = tb.top_eigen(model, None, data, "hessian", rtol=1e-9)
        assert found.value == pytest.approx(right, rel=1e-8)
    result = tb.scan(model, None, (x, y), horizon=20)
    assert result.lr_crit == pytest.approx(2 / right, rel=1e-4)
    assert result.settings["loss"] == "the model's own"
    assert tb.early_constants(model, None, (x, y), train_steps=10).sharpness == pytest.approx(
        right, rel=1e-3
    )
    rate = tb.forward_critical_rate(model.layer, "mse", (x, y)).value
    assert tb.forward_critical_rate(model, None, datas[3]).value == pytest.approx(rate, rel=1e-6)


def test_a_model_without_a_loss_needs_one() -> None:
    data = tuple(draws((8, 3), (8, 1)))
    for model in (net(), Own("logits").double()):
        with pytest.raises(InputError, match="loss: expected a loss, got None"):
            tb.scan(model, None, data, horizon=20)
        with pytest.raises(InputError, match="loss: expected a loss, got None"):
            tb.top_eigen(model, None, data, "hessian")
    with pytest.raises(InputError, match="loss: only the NTK goes without one"):
        tb.top_eigen(net(), None, data)


@pytest.mark.parametrize("name", ["mse", "l1", "huber", "smooth_l1", "half_mse", "bce"])
def test_losses_have_the_same_names_at_every_door(name: str) -> None:
    x, y = draws((8, 3), (8, 1))
    y = (y > 0).double()
    scan = tb.scan(net(), name, (x, y), horizon=20, curvature="none")
    problem = tb.Problem(net(), name, (x, y))
    runs = tb.sweep(problem, lr=[1e-3], steps=3)
    assert float(runs["loss"].sel(step=0).squeeze()) == pytest.approx(scan.settings["loss_first"])
    assert tb.top_eigen(net(), name, (x, y)).converged
