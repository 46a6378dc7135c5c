"""
Where the theorems say it changes, and where it does
====================================================

For the quadratic model both edges are known: a catapult begins at ηλ₀ = 2, and training ends at 4.
A sweep over forty rates and three seeds finds them there.
"""

import matplotlib.pyplot as plt
import numpy as np

import trebuchet as tb

problem = tb.Problem(
    lambda seed: tb.PureQuadratic.draw(200, generator=seed), "half_mse", ([[1.0]], [0.0])
)
edges = tb.edges(problem)
runs = tb.label(
    tb.sweep(problem, lr_ratio=np.linspace(0.25, 5, 40), seeds=3, steps=300, progress=False)
)

fig, (top, bar) = plt.subplots(
    2, 1, figsize=(7, 4.4), layout="constrained", height_ratios=[5, 1], sharex=True
)
tb.plots.against_rate(runs, "weight_norm_final", ax=top, edges=edges)
tb.plots.phase_bar(runs, ax=bar)
for name, edge in edges.items():
    print(f"{name}: ηλ₀ = {edge.lr_ratio:.3g}, {'proven' if edge.proven else 'leading order'}")
