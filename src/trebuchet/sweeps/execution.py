"""Where and how the runs of a sweep are computed: no number depends on it beyond rounding."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypedDict, get_args

import torch

from trebuchet._checks import choice, flag, from_zero, place as a_place, whole, workers as at_once
from trebuchet._doors import door, maybe, rule
from trebuchet._torch_checks import device as a_device
from trebuchet.engine.kernels.choose import Engine
from trebuchet.sweeps.chunking import MEMORY_BYTES

Backend = Literal["threads", "loky", "dask", "ray"]
BACKENDS = get_args(Backend)

_CHECKS = {
    "engine": rule(choice, get_args(Engine)), "span": flag,
    "chunk": maybe(whole, "a positive number"), "workers": at_once,
    "memory": rule(whole, "a positive number of bytes"), "device": maybe(a_device),
    "checkpoint": maybe(a_place), "checkpoint_seconds": from_zero,
    "backend": maybe(rule(choice, BACKENDS)),
}  # fmt: skip


@door(**_CHECKS)
@dataclass(frozen=True, slots=True)
class Execution:
    """How the runs of a sweep are computed.

    Args:
        engine: ``"auto"``: the theory's models by their own kernels, others on the module itself;
            ``"batched"``: runs of any module that ``torch.vmap`` takes, stacked; ``"sequential"``:
            outputs one run at a time; ``"module"``: never a kernel of its own. All give the same
            runs to rounding; the two in the middle are for full-batch gradient descent.
        span: Use data-span compression where the model allows it.
        chunk: Runs stacked together; measured unless given. Give it where digits must repeat
            exactly, since another stack rounds differently.
        workers: Chunks in flight together; a core each unless given, one on a GPU.
        memory: Bound, in bytes, on all chunks in flight.
        device: Where to run; where the model's weights are unless given.
        checkpoint: A folder to save to and to resume from: the same sweep called again goes on
            where it was, and equals the uninterrupted one bit for bit (on another kind of machine
            or another torch: to rounding). One process at a time may use it. It is a Zarr that
            ``load`` and xarray open at any time, with the runs that have ended; at the end it is
            the result. May be an address, such as ``s3://bucket/runs.zarr``.
        checkpoint_seconds: How often an unfinished chunk is saved; in other processes, only whole
            chunks are.
        backend: Where chunks are made: ``"threads"`` of this process (a module is trained in this
            one); ``"loky"``: processes of this machine; ``"dask"``: workers of the ``Client`` that
            you made; ``"ray"``. Unless given, what a ``joblib.parallel_config`` around the call
            says, else threads. A worker that dies costs its chunks, which are made again.

    Raises:
        InputError: If a setting is not what was expected.

    Example:
        >>> import trebuchet as tb
        >>> net = tb.MLP.draw(1, 8, generator=0)
        >>> execution = tb.Execution(chunk=2, workers=1)
        >>> runs = tb.sweep(net, "half_mse", ([[1.0]], [0.0]), lr=[0.1, 0.2], steps=5,
        ...                 execution=execution)
        >>> runs.attrs["chunk"], runs.attrs["workers"]
        (2, 1)
    """

    engine: Engine = "auto"
    span: bool = True
    chunk: int | None = None
    workers: int | None = None
    memory: int = MEMORY_BYTES
    device: str | torch.device | None = None
    checkpoint: str | Path | None = None
    checkpoint_seconds: float = 5.0
    backend: Backend | None = None


class ExecutionKeywords(TypedDict, total=False):
    """The same, as keywords of ``sweep``."""

    engine: Engine
    span: bool
    chunk: int | None
    workers: int | None
    memory: int
    device: str | torch.device | None
    checkpoint: str | Path | None
    checkpoint_seconds: float
    backend: Backend | None
