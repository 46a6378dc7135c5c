"""Run by test_distributed.py under torchrun: each rank measures on its shard, and prints."""

import os
import sys
from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import nn

from tests.curvature.nets import draw
from trebuchet.curvature import top_eigen


def problem() -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    model, x = draw("conv")
    # One target of class 2 is ignored: the shards' means have different divisors, 6 and 3.
    return model, x, torch.tensor([0, 1, 2, 0, 1, 2, 0, -100, 2, 1])


Measure = Callable[..., list[float]]


def measure(model: nn.Module, x: torch.Tensor, y: torch.Tensor, *, group: bool) -> list[float]:
    out: list[float] = []
    for operator in ("ggn", "ntk", "hessian"):
        for loss in (nn.CrossEntropyLoss(), nn.CrossEntropyLoss(reduction="sum")):
            top = top_eigen(
                model, loss, (x, y), operator, k=2, rtol=1e-9, group=group or None,
                mode="eval",
            )  # fmt: skip
            assert top.converged
            assert top.n_samples == 10
            out += [*top.values.tolist(), top.lr_crit]
    model.train()
    adam = top_eigen(
        model, nn.CrossEntropyLoss(), (x, y), "hessian", optimizer="adam", rtol=1e-9,
        mode="eval",
        group=group or None,
    )  # fmt: skip
    return [*out, adam.value]


if __name__ == "__main__":
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    model, x, y = problem()
    if rank == 1:  # unequal shards, and random states of their own
        torch.manual_seed(99)
    rows = slice(0, 6) if rank == 0 else slice(6, 10)
    values = measure(model, x[rows], y[rows], group=True)
    sys.stdout.write(f"rank {rank}: " + " ".join(f"{v!r}" for v in values) + "\n")
    sys.stdout.flush()
    dist.barrier()
    dist.destroy_process_group()
    # One process in a hundred aborts while torch's threads end with the interpreter ("terminate
    # called without an active exception"), everything measured and said.
    os._exit(0)
