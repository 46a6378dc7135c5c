"""A Zarr read with care: by codecs that run no code, and with one sentence for all that fails."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from trebuchet._checks import one_line
from trebuchet._whole import DamagedError

PLAIN = {"blosc", "zlib", "gzip", "bz2", "lz4", "zstd", "lzma", "shuffle", "delta", "crc32",
         "crc32c", "adler32", "fletcher32", "jenkins_lookup3", "fixedscaleoffset", "vlen-utf8",
         "string-dtype"}  # fmt: skip
"""Those of bytes, numbers and text."""


@contextmanager
def readable(folder: Path) -> Iterator[None]:
    """Read a Zarr inside, or say in a few words that it cannot be read.

    Args:
        folder: A Zarr of format 2, with consolidated metadata.

    Yields:
        Nothing.

    Raises:
        DamagedError: If it asks for a codec that may run code, or anything fails inside.
    """
    check_codecs(folder)
    try:
        yield
    except DamagedError:
        raise
    except Exception as error:  # Zarr, its codecs and xarray raise whatever they like
        msg = f"it cannot be read ({one_line(error)})"
        raise DamagedError(msg) from error


def check_codecs(folder: Path) -> None:
    """Refuse arrays that would be decoded by anything else.

    Args:
        folder: A Zarr of format 2, with consolidated metadata.

    Raises:
        DamagedError: If one names such a codec, or the metadata are not what they should be.
    """
    try:
        listed = json.loads((folder / ".zmetadata").read_text(encoding="utf-8"))["metadata"]
        for name, about in listed.items():
            if name.rpartition("/")[2] != ".zarray":
                continue
            for codec in [about.get("compressor"), *(about.get("filters") or ())]:
                if codec is not None and codec["id"] not in PLAIN:
                    msg = f"{name} asks for the codec {codec['id']!r}, which is none of trebuchet's"
                    raise DamagedError(msg)
    except DamagedError:
        raise
    except OSError as error:
        msg = f".zmetadata cannot be read ({error.strerror or error})"
        raise DamagedError(msg) from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        msg = ".zmetadata is not what trebuchet wrote"
        raise DamagedError(msg) from error
