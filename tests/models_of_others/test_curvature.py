"""λ of other people's models, against dense matrices by plain loops."""

import pytest
import torch

import trebuchet as tb
from tests.models_of_others import CASES, wrapped
from tests.models_of_others.case import differences, snapshot, truth


@pytest.mark.parametrize("name", CASES)
def test_top_eigenvalue(name: str) -> None:
    case = CASES[name]()
    for operator in case.operators:
        want = truth(case, operator)
        torch.manual_seed(123)
        before = snapshot(case.model, *case.others)
        top = tb.top_eigen(case.model, case.loss, case.data, operator, rtol=1e-6)
        assert differences(before, snapshot(case.model, *case.others)) == []
        assert top.converged, operator
        assert top.value == pytest.approx(want, rel=case.rtol), operator


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_measured_wider(dtype: torch.dtype) -> None:
    net, loss, data, wide = wrapped.half(dtype)
    for operator in ("ggn", "hessian"):
        top = tb.top_eigen(net, loss, data, operator, rtol=1e-5)
        # The weights are exact in float32, in which products are rounded: 1e-7 times a few.
        assert top.value == pytest.approx(truth(wide, operator), rel=1e-4)
