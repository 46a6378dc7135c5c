"""λ as recorded beside LAPACK's, at every recorded step of the paper's figures.

    python bench/top_eigenvalue_check.py [--data-root DIR] [--limit N] [FIGURE ...]

The quick grid of each figure, in float32 and in float64. Each recorded λ is compared with two that
all eigenvalues were computed for:

- *exact*: of H formed in float64 from the weights of that step. A ReLU's H jumps where a
  pre-activation changes its sign, so that signs are those that the run itself stepped with;
- *formed*: of the parts B and S of H = B + cSSᵀ as the run made them, in its own dtype, put
  together in float64. That is the operator that was asked about, which λ is promised of.

Runs of more than `--limit` steps are cut there. Pictures are files; without them figures 3 and
11–16 are left out.
"""

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import trebuchet as tb
from trebuchet.engine.kernels.dual import DualMLPKernel
from trebuchet.engine.kernels.mlp import MLPKernel
from trebuchet.engine.kernels.quadratic import QuadraticKernel
from trebuchet.paper.figures import QUICK_THIN
from trebuchet.paper.problems import paper_problem
from trebuchet.paper.settings import FIGURES, Images

LIMIT = {torch.float32: 600, torch.float64: 150}
PROMISED = {torch.float32: 1e-7, torch.float64: 1e-12}


def largest(h: Tensor) -> float:
    """LAPACK's, in float64; NaN where an entry is not finite."""
    whole = h.double().numpy()
    return float(np.linalg.eigvalsh(whole)[-1]) if np.isfinite(whole).all() else np.nan


def exact(net: MLPKernel | QuadraticKernel) -> list[Tensor]:
    """H of every run in float64, from its weights."""
    weights = [p.double() for p in net.params]
    if isinstance(net, MLPKernel):
        return [of_mlp(net, [w[run] for w in weights[: net.depth]], run) for run in range(net.runs)]
    same = object.__new__(QuadraticKernel)
    same.__dict__.update(net.__dict__, params=weights, flat=net.flat.double())
    same.coefficients = None if net.coefficients is None else net.coefficients.double()
    same.phi = None if net.phi is None else net.phi.double()
    same.forward()
    return list(same.gram())


def of_mlp(net: MLPKernel, weights: Sequence[Tensor], run: int) -> Tensor:
    """JJᵀ/D of one run, layer by layer; weights are (in, out)."""
    plus, minus = net.slopes
    slopes = [torch.where(a[run] > 0, plus, minus).double() for a in net._a]
    inputs = [net.x.double()]
    if isinstance(net, DualMLPKernel):
        inputs = [net.data.double()]
        start = net.initial[run].weights[0].detach().double()
        weights = [net.params[-1][run] * start.T + inputs[0].T @ weights[0], *weights[1:]]
    for w, slope in zip(weights, slopes, strict=False):
        inputs.append(inputs[-1] @ w * slope)
    total = torch.zeros(len(net.x), len(net.x), dtype=torch.float64)
    signal = torch.full((len(net.x), 1), net.scale, dtype=torch.float64)
    slopes = [*slopes[::-1], torch.ones(())]  # none of the inputs
    for w, a, slope in zip(weights[::-1], inputs[::-1], slopes, strict=True):
        total += (signal @ signal.T) * (a @ a.T)
        # At what came into this layer, before its activation.
        signal = signal @ w.T * slope
    return total / len(net.x)


class Exact(tb.Observable):
    """λ of the weights."""

    name = "exact"
    cheap = True  # asked for of runs that diverged too

    def of(self, runs: Any) -> np.ndarray:
        """By LAPACK."""
        runs.gram()  # evaluates the nets where nobody has
        return np.array([largest(h) for h in exact(runs.net)])


class Formed(tb.Observable):
    """λ of H's parts."""

    name = "formed"
    cheap = True

    def of(self, runs: Any) -> np.ndarray:
        """By LAPACK."""
        parts = runs.net.split_gram()
        whole = parts.dense.double()
        if parts.factor is not None:
            s = parts.factor.double()
            whole = torch.baddbmm(whole, s, s.mT, alpha=parts.weight)
        return np.array([largest(h) for h in whole])


def worst(found: np.ndarray, wanted: np.ndarray) -> float:
    """The largest relative error; of a λ of 0, or of one that is not finite, only 0 and NaN."""
    if not np.array_equal(np.isnan(found), np.isnan(wanted)):
        return np.inf
    known = ~np.isnan(wanted)
    found, wanted = found[known], wanted[known]
    with np.errstate(divide="ignore", invalid="ignore"):
        off = np.where(found == wanted, 0.0, np.abs(found - wanted) / np.abs(wanted))
    return float(off.max(initial=0.0))


def check(
    number: int, dtype: torch.dtype, data_root: Path | None, limit: int, thin: int = QUICK_THIN
) -> dict[str, Any]:
    """One figure in one dtype.

    Args:
        number: Which.
        dtype: Of weights and data.
        data_root: Folder of image files.
        limit: Most steps.
        thin: Of the grid.

    Returns:
        How many λ were compared, how far off the worst was, and what proved them.
    """
    setting, began = FIGURES[number], time.monotonic()
    problem = paper_problem(setting, dtype=dtype, data_root=data_root)
    steps = min(setting.steps, limit)
    runs = tb.sweep(
        problem, lr_ratio=setting.grid.ratios(thin=thin), seeds=[setting.seed], steps=steps,
        tolerance=setting.tolerance, chunk=setting.chunk, workers=1, progress=False,
        record=tb.Recording(dense=100, per_decade=60) if setting.long else tb.Recording(),
        observables=["top_eigenvalue", Exact(), Formed()],
    )  # fmt: skip
    found = runs.top_eigenvalue.values
    # The recorded steps, and the last of each run.
    pairs = {
        name: (np.append(found, runs.top_eigenvalue_final), np.append(runs[name], last))
        for name, last in (("exact", runs.exact_final), ("formed", runs.formed_final))
    }
    return {
        "figure": number, "dtype": str(dtype).removeprefix("torch."), "steps": steps,
        "of_steps": setting.steps, "runs": int(runs.status.size),
        "compared": int(np.isfinite(found).sum()),
        "zeros": int((runs.exact == 0).sum()),
        **{f"worst_against_{name}": worst(*pair) for name, pair in pairs.items()},
        "formed_against_exact": worst(pairs["formed"][1], pairs["exact"][1]),
        "proofs": runs.attrs.get("top_eigenvalue_proofs", ""),
        "seconds": round(time.monotonic() - began, 1),
    }  # fmt: skip


def main() -> None:
    """Check, print, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("figures", nargs="*", type=int, default=list(FIGURES))
    parser.add_argument("--data-root", type=Path)
    parser.add_argument("--limit", type=int)
    out = Path("bench/results/top_eigenvalue_check.json")
    parser.add_argument("--out", type=Path, default=out)
    given = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for number in given.figures:
        if isinstance(FIGURES[number].data, Images) and given.data_root is None:
            print(f"figure {number} is of pictures: give --data-root")
            continue
        for dtype, most in LIMIT.items():
            row = check(number, dtype, given.data_root, given.limit or most)
            row["kept"] = row["worst_against_formed"] <= PROMISED[dtype]
            rows.append(row)
            print(json.dumps(row), flush=True)
    facts = {"torch": torch.__version__, "cpu": torch.backends.cpu.get_cpu_capability()}
    given.out.write_text(json.dumps({"environment": facts, "rows": rows}, indent=1) + "\n")
    print(f"wrote {given.out}")


if __name__ == "__main__":
    main()
