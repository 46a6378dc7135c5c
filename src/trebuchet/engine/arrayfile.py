"""Arrays and a JSON header in one file, with a checksum: what checkpoints are made of.

A file is a line ``trebuchet arrays 1 SHA256``, the length of the header as 8 bytes, the header as
JSON, and the arrays' bytes one after another. The checksum is of all that follows the line, so that
a file that has been cut short or changed in a bit is never taken for a good one. Nothing in it can
execute: dtypes are looked up by name, and bytes are copied.
"""

import hashlib
import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trebuchet._whole import DamagedError

MAGIC = b"trebuchet arrays 1 "

Array = Tensor | NDArray[Any]


def pack(header: Mapping[str, Any], arrays: Mapping[str, Array]) -> bytes:
    """The bytes of a file.

    Args:
        header: Anything JSON can hold.
        arrays: Tensors of any dtype, device and strides, and NumPy arrays of numbers or strings.

    Returns:
        The bytes.

    Example:
        >>> data = pack({"step": 3}, {"w": torch.tensor([1.0, 2.0], dtype=torch.bfloat16)})
        >>> header, arrays = unpack(data)
        >>> header, arrays["w"]
        ({'step': 3}, tensor([1., 2.], dtype=torch.bfloat16))
        >>> unpack(data[:-1])
        Traceback (most recent call last):
        trebuchet._whole.DamagedError: its checksum is not that of its contents
    """
    rows, blobs = [], []
    for name, array in arrays.items():
        row, blob = _tensor_row(array) if isinstance(array, Tensor) else _array_row(array)
        rows.append({"name": name, **row})
        blobs.append(blob)
    text = json.dumps({"header": header, "arrays": rows}).encode()
    body = b"".join([len(text).to_bytes(8, "little"), text, *blobs])
    return MAGIC + hashlib.sha256(body).hexdigest().encode() + b"\n" + body


def unpack(data: bytes) -> tuple[dict[str, Any], dict[str, Array]]:
    """Header and arrays of a file, bit for bit as they were; tensors on the CPU.

    Args:
        data: The bytes of the whole file.

    Returns:
        The header, and the arrays by name, each with memory of its own.

    Raises:
        DamagedError: If the bytes are not whole.
    """
    if not data:
        msg = "it is empty"
        raise DamagedError(msg)
    line, _, body = data.partition(b"\n")
    if not line.startswith(MAGIC):
        msg = "it is no file of arrays of this version of trebuchet"
        raise DamagedError(msg)
    if hashlib.sha256(body).hexdigest().encode() != line.removeprefix(MAGIC):
        msg = "its checksum is not that of its contents"
        raise DamagedError(msg)
    try:
        start = 8 + int.from_bytes(body[:8], "little")
        told = json.loads(body[8:start])
        arrays: dict[str, Array] = {}
        for row in told["arrays"]:
            read = _tensor if row["kind"] == "tensor" else _array
            end = start + int(row["bytes"])
            arrays[str(row["name"])] = read(row, body[start:end])
            start = end
        return dict(told["header"]), arrays
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError, OverflowError) as error:
        msg = f"it does not hold what it says ({type(error).__name__})"
        raise DamagedError(msg) from error


def _tensor_row(tensor: Tensor) -> tuple[dict[str, Any], bytes]:
    plain = tensor.detach().cpu().contiguous()
    blob = plain.reshape(-1).view(torch.uint8).numpy().tobytes()
    dtype = str(tensor.dtype).removeprefix("torch.")
    # A product of matrices rounds by how they lie in memory, so that is part of the value.
    shape, stride = list(tensor.shape), list(tensor.stride())
    row = {"kind": "tensor", "dtype": dtype, "shape": shape, "stride": stride, "bytes": len(blob)}
    return row, blob


def _tensor(row: Mapping[str, Any], blob: bytes) -> Tensor:
    dtype = getattr(torch, str(row["dtype"]))
    if not isinstance(dtype, torch.dtype):
        msg = "no such dtype"
        raise TypeError(msg)
    shape = [int(n) for n in row["shape"]]
    if math.prod(shape) * dtype.itemsize != len(blob):
        msg = "another number of bytes"
        raise ValueError(msg)
    # Memory of torch's own, as every other tensor's: some kernels round by its alignment.
    result = torch.empty_strided(shape, [int(n) for n in row["stride"]], dtype=dtype)
    if blob:
        flat = torch.frombuffer(bytearray(blob), dtype=torch.uint8)
        result.copy_(flat.view(dtype).reshape(shape))
    return result


def _array_row(array: NDArray[Any]) -> tuple[dict[str, Any], bytes]:
    blob = np.ascontiguousarray(array).tobytes()
    shape = list(array.shape)
    return {"kind": "array", "dtype": array.dtype.str, "shape": shape, "bytes": len(blob)}, blob


def _array(row: Mapping[str, Any], blob: bytes) -> NDArray[Any]:
    dtype = np.dtype(str(row["dtype"]))
    if dtype.kind not in "biufU":
        msg = "no dtype of numbers or strings"
        raise TypeError(msg)
    return np.frombuffer(blob, dtype=dtype).reshape([int(n) for n in row["shape"]]).copy()
