"""Scans of other people's models: the critical rate, a rate that trains, and all put back."""

import pytest
import torch

import trebuchet as tb
from tests.models_of_others import CASES, generative, language, wrapped
from tests.models_of_others.case import Case, differences, snapshot, truth
from trebuchet.errors import InputError

NO_SECOND_DERIVATIVE = {"embedding bag", "distances"}


def scan(case: Case) -> tb.Scan:
    return tb.scan(case.model, case.loss, case.data, **{"horizon": 20, **case.scan})


@pytest.mark.parametrize("name", CASES)
def test_scan(name: str) -> None:
    case = CASES[name]()
    torch.manual_seed(123)
    before = snapshot(case.model, *case.others)
    found = scan(case)
    assert differences(before, snapshot(case.model, *case.others)) == []
    assert found.suggestion.reliable, found.summary()
    assert found.suggestion.expected_loss < found.settings["loss_first"]
    assert case.scan.get("optimizer", "sgd") != "sgd" or found.lr_crit > 0


FULL_BATCH = [
    n for n in CASES
    if n not in {"time-first recurrent", "graphs", "vit with dropout", "variational autoencoder"}
]  # fmt: skip


@pytest.mark.parametrize("name", FULL_BATCH)
def test_critical_rate(name: str) -> None:
    case = CASES[name]()
    operator = "hessian" if case.outputs is None else "ggn"
    if case.outputs is None and not _is_closure(case):
        operator = "ggn"  # outputs exist; the case only has no differentiable truth for them
        pytest.skip("its truth is of the Hessian, and the scan measures Gauss–Newton")
    found = scan(case)
    # The scan's λ is as good as a sixteenth of its budget buys; it says so where that is little.
    rtol = 1e-4 if not any("λ₀" in note for note in found.notes) else 0.2
    assert found.lr_crit == pytest.approx(2 / truth(case, operator), rel=rtol)


def _is_closure(case: Case) -> bool:
    return case.loss is None or not isinstance(case.loss, (str, torch.nn.Module))


@pytest.mark.parametrize("name", ["distillation", "vector quantised", "spectral norm", "gan"])
def test_every_run_starts_afresh(name: str) -> None:
    """The same rate, first and last in a scan, is the same run."""
    case = CASES[name]()
    rates = [0.05, 0.1, 0.2]
    one = tb.scan(case.model, case.loss, case.data, rates=rates, horizon=20, seeds=1)
    case = CASES[name]()
    other = tb.scan(case.model, case.loss, case.data, rates=[0.1], horizon=20, seeds=1)
    losses = [
        run["loss"].iloc[:2].tolist() for scan in (one, other)
        for _, run in scan.traces[(scan.traces["rate"] / 0.1 - 1).abs() < 1e-6].groupby("seed")
    ]  # fmt: skip
    assert len(losses) == 2
    assert losses[0] == losses[1]


def test_sparse_gradients_are_refused_in_a_sentence() -> None:
    model, loss, data = language.sparse_embedding()
    with pytest.raises(InputError, match="sparse=False"):
        tb.scan(model, loss, data, horizon=20)


def test_a_loss_that_compares_samples_is_not_split() -> None:
    model, loss, data = generative.contrastive()
    with pytest.raises(InputError, match="micro"):
        tb.top_eigen(model, loss, data, "ggn", micro_batch=3)
    assert tb.top_eigen(model, loss, data, "ggn").value > 0


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype: torch.dtype, optimizer: str) -> None:
    net, loss, data, _ = wrapped.half(dtype)
    if dtype is torch.float16 and optimizer == "adam":
        with pytest.raises(InputError, match="eps"):
            tb.scan(net, loss, data, optimizer, horizon=20)
        return
    assert tb.scan(net, loss, data, optimizer, horizon=20).suggestion.reliable
