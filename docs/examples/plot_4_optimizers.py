"""
The same network under three optimizers
=======================================

Each optimizer has its own scale of good rates, and its own edge of stability (dashed), which
momentum and Adam's preconditioner move. The scan finds the rates without being told any of this.
"""

import matplotlib.pyplot as plt
import torch

import trebuchet as tb

x = torch.randn(128, 8, generator=torch.Generator().manual_seed(1))
data = (x, torch.sin(x.sum(1, keepdim=True)))
fig, axes = plt.subplots(3, 1, figsize=(8, 9), layout="constrained")
for optimizer, ax in zip(["sgd", "momentum", "adamw"], axes, strict=True):
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(8, 64), torch.nn.Tanh(), torch.nn.Linear(64, 1))
    scan = tb.scan(net, "mse", data, optimizer, batch_size=32, horizon=100, progress=False)
    scan.plot(ax)
    print(f"{optimizer}: {scan.suggestion.rate:.3g}, training ends {scan.lr_max}")
