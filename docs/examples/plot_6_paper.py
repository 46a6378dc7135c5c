"""
A figure of the paper
=====================

Any of the sixteen figures of Meltzer & Liu is one call, at the authors' settings and seeds; here
every fourth rate of figure 6, the quadratic model with bias. ``trebuchet paper 6`` draws the
paper's own panels; the runs are a dataset as any other, for panels of your own.
"""

import matplotlib.pyplot as plt

import trebuchet as tb

figure = tb.paper.figure(6, quick=True, progress=False)
fig, (left, right) = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
tb.plots.traces(figure.runs, "loss", ax=left)
left.legend()
tb.plots.against_rate(figure.runs, "lr_ratio_final", ax=right, edges=figure.edges)
