"""What a number owes to the machine that computed it: instruction set, threads, versions.

Sums are rounded in the order in which a CPU's kernels add, so digits past a dtype's precision, and
more of them where the dynamics amplify, differ between machines. Results carry these facts, that
two which differ can be told apart; they are no part of what was asked, and enter no config hash.
"""

import os
import platform
import re
from functools import cache
from importlib.metadata import version
from pathlib import Path

import threadpoolctl
import torch

SWITCHES = (
    "MKL_ENABLE_INSTRUCTIONS",
    "MKL_CBWR",
    "ATEN_CPU_CAPABILITY",
    "OPENBLAS_CORETYPE",
)
"""Environment variables by which a user may choose other kernels than the CPU's own."""

FACTS = ("versions", "cpu", "cpu_capability", "blas", "instructions", "threads")
"""The names of the facts."""


def environment() -> dict[str, str | int]:
    """The facts, as attributes that JSON, Zarr and netCDF can hold.

    Returns:
        ``versions``; ``cpu``, the processor's own name (MKL chooses its kernels by maker);
        ``cpu_capability``, the instruction set of PyTorch's kernels; ``blas``, PyTorch's library
        for linear algebra, and NumPy's with its kernels where they tell; ``instructions``, those of
        `SWITCHES` that are set; ``threads``, PyTorch's when asked.

    Example:
        >>> tuple(environment()) == FACTS
        True
    """
    return {**_lasting(), "threads": torch.get_num_threads()}


def versions() -> str:
    """Versions that decide the numbers, as one line: "trebuchet 0.1.0, python 3.11.9, …"."""
    packages = ("trebuchet", "torch", "numpy", "xarray")
    named = [("python", platform.python_version()), *((name, version(name)) for name in packages)]
    return ", ".join(f"{name} {number}" for name, number in named)


@cache  # the kernels are chosen when the libraries are loaded
def _lasting() -> dict[str, str]:
    chosen = [f"{name}={os.environ[name]}" for name in SWITCHES if os.environ.get(name)]
    return {
        "versions": versions(),
        "cpu": _cpu(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "blas": _blas(),
        "instructions": ", ".join(chosen) or "the libraries' own choice",
    }


def _cpu() -> str:
    """Architecture and name, such as "x86_64 AMD EPYC"; the architecture alone where no name is."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:  # not Linux
        text = ""
    name = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    parts = (platform.machine(), name[1] if name else platform.processor())
    return " ".join(dict.fromkeys(part for part in parts if part))


def _blas() -> str:
    """Such as "torch mkl, numpy openblas SkylakeX"."""
    built = re.search(r"BLAS_INFO=(\w+)", torch.__config__.show())
    names = [f"torch {built[1]}"] if built else []
    for pool in threadpoolctl.threadpool_info():
        if pool["user_api"] == "blas" and "numpy" in pool["filepath"]:
            names.append(f"numpy {pool['internal_api']} {pool.get('architecture', '')}".strip())
    return ", ".join(dict.fromkeys(names))
