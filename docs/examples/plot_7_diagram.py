"""
A phase diagram: learning rate × width
======================================

One sweep a width, put side by side: a two-layer ReLU net on digits 0 and 1, rates as ηλ₀. In that
unit a catapult begins near 2 at every width, while the rates past which nets collapse (all of
their ReLUs are off) are higher for wide ones.
"""

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.colors import ListedColormap

import trebuchet as tb
from trebuchet.paper.beyond import relu_problem
from trebuchet.plots.style import PHASE_COLOURS

widths, ratios = [16, 32, 64, 128, 256], np.arange(0.5, 16, 1)
names = list(PHASE_COLOURS)
rows = []
for width in widths:
    runs = tb.sweep(
        relu_problem(width, n_train=32), lr_ratio=ratios, seeds=3, steps=60, progress=False
    )
    phases, _ = tb.plots.majority_phase(tb.label(runs))
    rows.append([names.index(phase) for phase in phases])

fig, ax = plt.subplots(figsize=(7.5, 3.4), layout="constrained")
ax.imshow(
    rows, aspect="auto", origin="lower", cmap=ListedColormap([*PHASE_COLOURS.values()]),
    vmin=-0.5, vmax=len(names) - 0.5,
)  # fmt: skip
ax.set_xticks(range(0, len(ratios), 2), [f"{r:g}" for r in ratios[::2]])
ax.set_yticks(range(len(widths)), widths)
ax.set(xlabel="learning-rate ratio ηλ₀", ylabel="width")
for name in sorted({names[k] for row in rows for k in row}, key=names.index):
    ax.scatter([], [], marker="s", color=PHASE_COLOURS[name], label=str(name))
fig.legend(loc="outside upper right", ncols=4)
