"""Small labelled datasets with real dynamics: the two-variable map, and a two-layer ReLU net."""

from typing import Any

import numpy as np
import xarray as xr

from trebuchet._types import Status
from trebuchet.phases.label import label
from trebuchet.results.schema import make_dataset
from trebuchet.results.summary import summarise


def two_variable_map(rates: Any, seeds: int = 1, steps: int = 60) -> xr.Dataset:
    """u' = u(1 − v + u)², v' = v − u(4 − v), swept over η: ηλ = v, L = u/η², |θ|²/P = v/η.

    λ₀ is 1 + 0.04 s for seed s, so that near 4 the seeds differ in phase.
    """
    rates = np.asarray(rates, dtype=float)
    eta = np.repeat(rates[:, None], seeds, axis=1)
    v, u = eta * (1 + 0.04 * np.arange(seeds)), 1e-3 * eta**2
    us, vs = [u], [v]
    for _ in range(steps):
        alive = u < 1e12
        u, v = (
            np.where(alive, u * (1 - v + u) ** 2, np.nan),
            np.where(alive, v - u * (4 - v), np.nan),
        )
        us.append(u)
        vs.append(v)
    loss = np.stack(us, -1) / eta[..., None] ** 2
    lam = np.stack(vs, -1) / eta[..., None]
    return finish(loss, lam, 100 * lam, eta, "lr", {"n_parameters": 100})


def relu_net(
    rates: Any, seeds: int = 2, steps: int = 300, width: int = 96, d: int = 12
) -> xr.Dataset:
    """A two-layer ReLU net on two noisy classes, gradient descent written out in NumPy."""
    rng = np.random.default_rng(7)
    D = 24
    y = np.where(np.arange(2 * D) % 2, 1.0, -1.0)
    x = 0.5 + 0.15 * rng.standard_normal((2 * D, d)) + 0.35 * y[:, None] * (np.arange(d) < d // 2)
    x, x_test, y, y_test = x[:D], x[D:], y[:D], y[D:]
    rates = np.asarray(rates, dtype=float)
    shape = (len(rates), seeds, steps + 1)
    out = {k: np.full(shape, np.nan) for k in ("loss", "lam", "norm", "test", "sparse")}
    scale = 1 / np.sqrt(width * d)
    for s in range(seeds):
        start = np.random.default_rng(s)
        u0, v0 = start.standard_normal((d, width)), start.standard_normal(width)
        lam0 = kernel_top(x, u0, v0, scale)
        for r, rate in enumerate(rates):
            u, v, eta = u0.copy(), v0.copy(), rate / lam0
            for t in range(steps + 1):
                h = x @ u  # (D, width)
                act = np.maximum(h, 0)
                error = scale * act @ v - y
                out["loss"][r, s, t] = loss = (error**2).mean() / 2
                out["norm"][r, s, t] = (u**2).sum() + (v**2).sum()
                out["lam"][r, s, t] = kernel_top(x, u, v, scale)
                out["sparse"][r, s, t] = (h < 0).mean()
                out["test"][r, s, t] = (
                    (scale * np.maximum(x_test @ u, 0) @ v - y_test) ** 2
                ).mean() / 2
                if loss > 1e8 * out["loss"][r, s, 0]:
                    break
                du = scale * x.T @ ((h > 0) * v * error[:, None]) / D
                dv = scale * act.T @ error / D
                u, v = u - eta * du, v - eta * dv
    return finish(
        out["loss"],
        out["lam"],
        out["norm"],
        rates[:, None] / out["lam"][0, :, 0],
        "lr_ratio",
        {"n_parameters": (d + 1) * width},
        sparsity=out["sparse"][..., None],
        test_loss=out["test"],
    )


def kernel_top(x: Any, u: Any, v: Any, scale: float) -> float:
    h = x @ u
    act, on = np.maximum(h, 0), (h > 0).astype(float)
    gram = act @ act.T + (x @ x.T) * ((on * v**2) @ on.T)
    return float(scale**2 / len(x) * np.linalg.eigvalsh(gram)[-1])


def finish(
    loss: Any, lam: Any, norm: Any, eta: Any, swept: str, attrs: dict[str, Any], **more: Any
) -> xr.Dataset:
    """Cut runs where they blew up, label them, and stamp them."""
    _, seeds, n_step = loss.shape
    gone = ~(loss < 1e8 * loss[..., :1])
    over = np.cumsum(gone, axis=-1) > 1  # the first number past the bound is still recorded
    cut = {"loss": loss, "top_eigenvalue": lam, "weight_norm": norm}
    cut |= {k: v for k, v in more.items() if v.ndim == 3}
    cut = {k: np.where(over | ~np.isfinite(v), np.nan, v) for k, v in cut.items()}
    if "sparsity" in more:
        cut["sparsity"] = np.where(over[..., None], np.nan, more["sparsity"])
    status = np.where(gone.any(-1), str(Status.BLEW_UP), str(Status.MAX_STEPS))
    ds = make_dataset(
        cut
        | {
            "learning_rate": eta,
            "lr_ratio": eta * lam[..., 0],
            "top_eigenvalue_init": lam[0, :, 0],
            "status": status,
        },
        lr=(eta if swept == "lr" else eta * lam[..., 0])[:, 0],
        seed=np.arange(seeds),
        step=np.arange(n_step),
        swept=swept,
        attrs=attrs,
    )
    return label(summarise(ds))
