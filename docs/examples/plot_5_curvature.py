"""
Curvature, and the rate it implies
==================================

The top eigenvalue of the Gauss–Newton matrix, with an error bar; and where the linear stability of
each optimizer ends at that curvature.
"""

import matplotlib.pyplot as plt
import numpy as np
import torch

import trebuchet as tb

torch.manual_seed(0)
net = torch.nn.Sequential(torch.nn.Linear(8, 64), torch.nn.Tanh(), torch.nn.Linear(64, 1))
x = torch.randn(128, 8)
top = tb.top_eigen(net, "mse", (x, torch.sin(x.sum(1, keepdim=True))))
print(top)

# %%
# Momentum moves the edge of stability: up to 4/λ in its plain form, and down in Nesterov's.

fig, ax = plt.subplots(figsize=(6, 3.4), layout="constrained")
beta = np.linspace(0, 0.98, 50)
for optimizer in ("momentum", "nesterov"):
    edge = [tb.stability.critical_lr(optimizer, top.value, momentum=float(b)) for b in beta]
    ax.plot(beta, edge, label=optimizer)
ax.axhline(top.lr_crit, linestyle=":", color="grey", label="plain gradient descent, 2/λ")
ax.set(xlabel="momentum β", ylabel="critical learning rate", ylim=(0, None))
ax.legend()
