"""
Lazy, catapult, divergent
=========================

The loss of one network at four rates. At ηλ₀ = 1 it falls from the first step (lazy). At 2.5 and
3.5 it first rises, and then falls to a flatter place, where ηλ is below 2 again (catapult). At 4.5
it never comes back (divergent).
"""

import matplotlib.pyplot as plt

import trebuchet as tb

problem = tb.Problem(
    lambda seed: tb.PureQuadratic.draw(200, generator=seed), "half_mse", ([[1.0]], [0.0])
)
runs = tb.sweep(
    problem, lr_ratio=[1.0, 2.5, 3.5, 4.5], seeds=1, steps=40,
    observables=["top_eigenvalue"], progress=False,
)  # fmt: skip
runs = tb.label(runs)

fig, (left, right) = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
every = range(runs.sizes["lr"])
tb.plots.traces(runs, "loss", ax=left, rates=every)
tb.plots.traces(runs, "lr_ratio", ax=right, rates=every)
left.legend()
