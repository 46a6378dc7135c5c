"""Which forms data may come in: one batch or many, cut with the type kept, read once."""

import dataclasses
from collections import OrderedDict, UserDict
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pack_sequence
from torch.utils.data import DataLoader, TensorDataset

import trebuchet as tb
from tests.problem.reference import draws, net, top
from trebuchet.curvature import held_still
from trebuchet.errors import InputError


@pytest.mark.parametrize("count", [1, 3, 4])
@pytest.mark.parametrize("named", [True, False])
def test_a_loader_of_lists_is_read_once(count: int, named: bool) -> None:
    x, y, w, more = draws((24, 1), (24, 1), (24, 1), (24, 1))
    data = [x, y, w.exp(), more][:count]
    torch.manual_seed(0)
    model = nn.Linear(1, 1).double()

    def weighted(model: nn.Module, batch: Any) -> Tensor:
        assert isinstance(batch, list)
        assert len(batch) == count
        z = model(batch[0])
        error = z - batch[1] if count > 1 else z
        return torch.as_tensor((error.square() * (batch[2] if count > 2 else 1)).mean())

    right = 2 / top(model, lambda: weighted(model, data))
    loss: Any = weighted if named else lambda m, b: weighted(m, b)
    loader = DataLoader(TensorDataset(*data), batch_size=24)
    result = tb.scan(model, loss, loader, horizon=20)
    assert result.lr_crit == pytest.approx(right, rel=1e-6)
    smaller = DataLoader(TensorDataset(*data), batch_size=9)
    found = tb.top_eigen(model, loss, smaller, "hessian", rtol=1e-9)
    assert found.lr_crit == pytest.approx(right, rel=1e-7)
    assert tb.early_constants(model, loss, smaller, train_steps=10).sharpness == pytest.approx(
        2 / right, rel=1e-3
    )


def test_a_list_of_tensors_is_one_batch_where_it_cannot_be_many() -> None:
    x, w = draws((9, 3), (9,))
    y = torch.arange(9) % 2
    model = net(outputs=2)

    def loss(model: nn.Module, batch: Any) -> Tensor:
        x, y, w = batch
        return torch.as_tensor((w.exp() * F.cross_entropy(model(x), y, reduction="none")).mean())

    right = top(model, lambda: loss(model, (x, y, w)))
    found = tb.top_eigen(model, loss, [x, y, w], "hessian", rtol=1e-9)
    assert found.value == pytest.approx(right, rel=1e-8)
    with pytest.raises(InputError, match="may be one batch or 3 of them; pass a tuple"):
        tb.top_eigen(net(), loss, draws((9, 1), (9, 1), (9, 1)), "hessian")


class Pair(NamedTuple):
    x: Tensor
    y: Tensor


class Backwards(NamedTuple):
    label: Tensor
    x: Tensor


class Encoding(UserDict[str, Any]):
    """As tokenizers return: a mapping with attributes."""

    def __init__(self, data: Any = None, pieces: int = 0) -> None:
        super().__init__(data)
        self.pieces = pieces

    def __getattr__(self, name: str) -> Any:
        if name == "data":
            raise AttributeError(name)
        try:
            return self.data[name]
        except KeyError:
            raise AttributeError(name) from None


class Dotted(dict[str, Any]):
    """A dict whose keys are attributes."""

    __getattr__ = dict.__getitem__


class Immutable(Mapping[str, Any]):
    """A mapping of one's own."""

    def __init__(self, held: Mapping[str, Any]) -> None:
        self._held = dict(held)
        self.x, self.y = self._held["x"], self._held["y"]

    def __getitem__(self, key: str) -> Any:
        return self._held[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._held)

    def __len__(self) -> int:
        return len(self._held)


@dataclasses.dataclass(frozen=True, slots=True)
class Record:
    x: Tensor
    y: Tensor
    where: str = "here"


class Sub(tuple):  # type: ignore[type-arg]
    """A tuple of one's own."""

    __slots__ = ()
    x = property(lambda self: self[0])
    y = property(lambda self: self[1])


CONTAINERS: dict[str, Callable[[Tensor, Tensor], Any]] = {
    "named tuple": Pair,
    "a named tuple in a dict": lambda x, y: {"pair": Pair(x, y), "y": y},
    "encoding": lambda x, y: Encoding({"x": x, "y": y}, pieces=7),
    "dotted": lambda x, y: Dotted(x=x, y=y),
    "ordered": lambda x, y: OrderedDict(x=x, y=y),
    "immutable": lambda x, y: Immutable({"x": x, "y": y}),
    "data class": Record,
    "tuple of one's own": lambda x, y: Sub((x, y)),
}


@pytest.mark.parametrize("case", CONTAINERS)
def test_containers_are_cut_and_keep_their_type(case: str) -> None:
    x, y = draws((64, 3), (64, 1))
    whole = CONTAINERS[case](x, y)
    sizes = set()

    def loss(model: nn.Module, batch: Any) -> Tensor:
        assert type(batch) is type(whole)
        assert getattr(batch, "pieces", 7) == 7 if case == "encoding" else True
        inner = batch["pair"] if "in a dict" in case else batch
        a, b = (inner["x"], inner["y"]) if case == "ordered" else (inner.x, inner.y)
        sizes.add(len(a))
        return F.mse_loss(model(a), b)

    result = tb.scan(net(), loss, whole, batch_size=8, horizon=20)
    plain = tb.scan(net(), "mse", (x, y), batch_size=8, horizon=20)
    assert 8 in sizes
    np.testing.assert_allclose(result.table["loss"], plain.table["loss"], rtol=1e-9)
    assert torch.equal(next(iter(_tensors(whole))), x)  # the user's own is as it was


def _tensors(item: Any) -> Iterator[Tensor]:
    if isinstance(item, Tensor):
        yield item
    elif isinstance(item, Mapping):
        for value in item.values():
            yield from _tensors(value)
    elif isinstance(item, Record):
        yield from (item.x, item.y)
    else:
        for value in item:
            yield from _tensors(value)


def test_named_tuples_say_which_is_the_target() -> None:
    x, y = draws((12, 3), (12, 1))
    right = tb.top_eigen(net(), "mse", (x, y)).value
    for batch in (Pair(x, y), Backwards(label=y, x=x)):
        assert tb.top_eigen(net(), "mse", batch, micro_batch=5).value == pytest.approx(right)


class Stubborn(dict[str, Any]):
    """A mapping that nobody can make a second time."""

    def __init__(self, x: Tensor, y: Tensor, *, secret: int) -> None:
        super().__init__(x=x, y=y)
        del secret

    def __copy__(self) -> Any:
        raise TypeError

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise TypeError


def test_what_cannot_be_made_anew_is_said() -> None:
    x, y = draws((12, 3), (12, 1))
    batch = Stubborn(x, y, secret=1)
    loss = tb.ModelLoss(lambda m, b: F.mse_loss(m(b["x"]), b["y"]))
    assert tb.scan(net(), loss, batch, horizon=20).lr_crit > 0  # whole, it need not be
    with pytest.raises(InputError, match="cannot make another Stubborn") as caught:
        tb.scan(net(), loss, batch, batch_size=4, horizon=20)
    assert "pass a dict or a tuple" in str(caught.value)


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cells, self.out = nn.GRU(3, 4, batch_first=True), nn.Linear(4, 1)

    def forward(self, x: Tensor, h: Tensor | None = None) -> Any:
        return self.out(self.cells(x, h)[1][-1])


def test_a_hidden_state_has_no_sample_axis_in_front() -> None:
    x, h, y = draws((16, 5, 3), (1, 16, 4), (16, 1))
    model = Recurrent().double()
    message = r"inputs\[1\] of shape \(1, 16, 4\) has its 16 samples not along the first axis"
    with pytest.raises(InputError, match=message) as caught:
        tb.scan(model, "mse", ((x, h), y), batch_size=4, horizon=20)
    assert "leave batch_size out" in str(caught.value)
    with pytest.raises(InputError, match=message):
        tb.top_eigen(model, "mse", ((x, h), y), micro_batch=4)
    assert tb.top_eigen(model, "mse", ((x, h), y)).n_samples == 16


def test_packed_sequences_are_one_input_and_can_be_cut() -> None:
    rows = draws((3, 3), (5, 3), (2, 3), (4, 3), (5, 3), (1, 3), (2, 3), (5, 3))
    (y,) = draws((8, 1), seed=1)
    torch.manual_seed(0)
    model = Recurrent().double()
    packed = pack_sequence(rows, enforce_sorted=False)

    def one_by_one() -> Tensor:
        return torch.stack(
            [(model(r[None]) - t).square().mean() for r, t in zip(rows, y, strict=True)]
        ).mean()

    with held_still(model, mode="as_is"):  # recurrent kernels with a second derivative
        right = top(model, one_by_one)
    for settings in ({}, {"micro_batch": 3}):
        found = tb.top_eigen(model, "mse", (packed, y), "hessian", rtol=1e-8, **settings)  # type: ignore[arg-type]
        assert found.value == pytest.approx(right, rel=1e-7)
        assert found.n_samples == 8
    result = tb.scan(model, "mse", (packed, y), batch_size=4, horizon=20)
    assert result.settings["n_samples"] == 8
    assert tb.top_eigen(model, None, packed, "ntk").n_samples == 8


class TakesDict(nn.Module):
    """Takes the whole dict as one argument."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 1)

    def forward(self, batch: Mapping[str, Tensor]) -> Any:
        return self.layer(batch["x"])


class TakesAny(TakesDict):
    def forward(self, **batch: Tensor) -> Any:  # type: ignore[override]
        return super().forward(batch)


@pytest.mark.parametrize("kind", [TakesDict, TakesAny])
def test_keywords_are_bound_where_the_signature_has_them(kind: type[TakesDict]) -> None:
    x, y = draws((12, 3), (12, 1))
    model = kind().double()
    right = tb.top_eigen(model.layer, "mse", (x, y)).value
    datas: list[Any] = [
        {"x": x, "y": y},
        ({"x": x}, y),
        [{"x": x[:7], "y": y[:7]}, {"x": x[7:], "y": y[7:]}],
    ]
    for data in datas:
        assert tb.top_eigen(model, "mse", data, rtol=1e-9).value == pytest.approx(right, rel=1e-8)
    assert tb.top_eigen(model, "mse", datas[0], micro_batch=5).value == pytest.approx(right)
    assert tb.scan(model, "mse", datas[0], batch_size=4, horizon=20).lr_crit > 0


def test_arrays_are_taken_for_tensors_everywhere() -> None:
    x, y = draws((24, 3), (24, 1))
    model = net().float()
    right = tb.top_eigen(model, "mse", (x.float(), y.float())).value
    arrays = (x.numpy(), y.numpy())
    fixed = x.numpy().copy()
    fixed.flags.writeable = False
    for data in (
        arrays, list(arrays), (fixed, y.numpy()), {"input": arrays[0], "y": arrays[1]},
        (pd.DataFrame(arrays[0]), pd.Series(arrays[1][:, 0]).to_frame()), (x.float(), y.numpy()),
        [(arrays[0][:13], arrays[1][:13]), (arrays[0][13:], arrays[1][13:])],
        (arrays[0][::-1], arrays[1][::-1].astype(">f8")),
    ):  # fmt: skip
        assert tb.top_eigen(model, "mse", data).value == pytest.approx(right, rel=1e-4)
    assert tb.scan(model, "mse", arrays, batch_size=8, horizon=20).lr_crit > 0
    assert tb.forward_critical_rate(model, "mse", arrays).value > 0
    assert tb.early_constants(model, "mse", arrays, train_steps=10).sharpness > 0
    for kind in (np.int8, np.int32, np.int64, np.uint16):
        labels = (np.arange(24) % 2).astype(kind)
        assert tb.top_eigen(net(outputs=2).float(), "cross_entropy", (arrays[0], labels)).value > 0
    with pytest.raises(InputError, match="data: expected"):
        tb.top_eigen(model, "mse", TensorDataset(x, y))
    # Lists of numbers are arrays to a `Problem`, and so to every door.
    listed = tb.top_eigen(model, "mse", (x.tolist(), y.tolist())).value
    assert listed == tb.top_eigen(model, "mse", arrays).value


def test_a_constant_in_every_batch_is_no_set_of_samples() -> None:
    x, weights = draws((20, 3), (5,))
    y = torch.arange(20) % 5
    model = net(outputs=5)
    batches = [{"x": x[i : i + 5], "w": weights.exp(), "y": y[i : i + 5]} for i in range(0, 20, 5)]
    seen = []

    def loss(model: nn.Module, batch: Any) -> Tensor:
        seen.append(batch["w"])
        return F.cross_entropy(model(batch["x"]), batch["y"], weight=batch["w"])

    tb.scan(model, loss, batches, batch_size=5, horizon=20, curvature="none")
    assert all(torch.equal(w, weights.exp()) for w in seen)


def test_one_batch_many_times_over_is_put_together() -> None:
    x, y = draws((5, 3), (5, 1))
    result = tb.scan(net(), "mse", [(x, y)] * 4, batch_size=10, horizon=20)
    assert result.settings["n_samples"] == 20
