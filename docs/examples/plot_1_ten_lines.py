"""
A rate for your network, in ten lines
=====================================

A scan needs a module, a loss and data. It trains at a few rates, keeps those that do best, and
says which to use, with an interval and a reason; the module itself is left as it was.
"""

import torch

import trebuchet as tb

torch.manual_seed(0)
digits = tb.data.load_digits01()
x, y = torch.tensor(digits.x_train).float(), torch.tensor(digits.y_train > 0).long()
net = torch.nn.Sequential(torch.nn.Linear(64, 32), torch.nn.ReLU(), torch.nn.Linear(32, 2))
scan = tb.scan(net, "cross_entropy", (x, y), "sgd", batch_size=32, horizon=100, progress=False)
print(scan)

# %%
# Filled marks went to the end, open ones were dropped on the way for better rates. The green line
# is the rate to use, in the band of those about as good.

scan.plot()
