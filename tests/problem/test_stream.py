"""What runs are compared on: spread over the data, in whatever order it comes."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

import trebuchet as tb
from tests.problem.reference import draws


def _sorted() -> tuple[nn.Module, Tensor, Tensor]:
    """Samples of which the first half are five times smaller than the rest."""
    x, noise = draws((640, 3), (640, 1))
    x[320:] *= 5
    torch.manual_seed(0)
    return nn.Linear(3, 1).double(), x, x.sum(1, keepdim=True) + 0.1 * noise


class Lines(IterableDataset[Any]):
    def __init__(self, x: Tensor, y: Tensor) -> None:
        self.rows = list(zip(x, y, strict=True))

    def __iter__(self) -> Any:
        return iter(self.rows)


def _padded(rows: list[Any]) -> tuple[Tensor, Tensor]:
    return torch.stack([x for x, _ in rows]), torch.stack([y for _, y in rows])


def _forms(x: Tensor, y: Tensor) -> dict[str, Any]:
    data = TensorDataset(x, y)
    return {
        "loader": DataLoader(data, batch_size=16),
        "custom collate": DataLoader(data, batch_size=16, collate_fn=_padded),
        "list": [(x[i : i + 16], y[i : i + 16]) for i in range(0, len(x), 16)],
        "iterable": DataLoader(Lines(x, y), batch_size=16),
    }


@pytest.mark.parametrize("form", ["loader", "custom collate", "list", "iterable"])
def test_the_fixed_set_is_spread_over_all_that_is_read(form: str) -> None:
    model, x, y = _sorted()
    result = tb.scan(model, "mse", _forms(x, y)[form], horizon=40, seeds=1)
    full = F.mse_loss(model(x), y).item()
    first = F.mse_loss(model(x[:256]), y[:256]).item()
    assert result.settings["loss_first"] == pytest.approx(full, rel=0.3)
    assert first < 0.2 * full
    spread = "" if form == "iterable" else ", spread over 40 batches"  # put together when read
    assert result.settings["compared_on"] == f"256 of 640 samples{spread}"
    whole = tb.top_eigen(model, "mse", (x, y)).lr_crit
    assert result.lr_crit == pytest.approx(whole, rel=0.6)
    assert tb.top_eigen(model, "mse", (x[:32], y[:32])).lr_crit > 2 * whole


def test_a_loader_longer_than_the_runs_is_looked_at_as_a_whole() -> None:
    model, x, y = _sorted()
    result = tb.scan(model, "mse", _forms(x, y)["loader"], horizon=20, seeds=1)
    assert result.settings["loss_first"] == pytest.approx(F.mse_loss(model(x), y).item(), rel=0.3)
    assert result.settings["n_samples"] == 320  # what the runs train on, in the loader's order
    assert "40 batches" in result.settings["compared_on"]


def test_time_is_never_mixed_where_a_collate_puts_it_first() -> None:
    lengths: set[int] = set()

    class Time(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3, 1)

        def forward(self, x: Tensor) -> Any:
            lengths.add(len(x))
            return self.layer(x)

    def time_first(rows: list[Any]) -> tuple[Tensor, Tensor]:
        x, y = _padded(rows)
        return x.transpose(0, 1), y.transpose(0, 1)

    x, y = draws((96, 7, 3), (96, 7, 1))
    torch.manual_seed(0)
    for shuffle in (True, False):
        model = Time().double()
        loader = DataLoader(
            TensorDataset(x, y), batch_size=8, shuffle=shuffle, collate_fn=time_first
        )
        tb.scan(model, "mse", loader, horizon=20)
        assert lengths == {7}
