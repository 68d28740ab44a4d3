"""The checksum of everything on disk: CRC32C, one C function of the package `crc32c`.

The function is taken from the package's extension module by itself. What the package imports beside it (its own
command line, and the metadata of installed packages) costs more time than all of `import durabledbm`, and nothing of
it is needed. Where the extension module is not found so, the package is imported as usual: it is the same function.
"""

from __future__ import annotations

import sys
from importlib.machinery import ExtensionFileLoader, PathFinder
from typing import Any, Protocol

__all__ = ["Checksum", "crc32c", "from_extension"]


class Checksum(Protocol):
    """`crc32c(data)`, and `crc32c(more, crc32c(data))` for data in pieces."""

    def __call__(self, data: bytes | bytearray | memoryview, value: int = 0, /) -> int: ...


def from_extension(package: str) -> Checksum | None:
    """`crc32c` of the extension module `_crc32c` in `package`, or None if there is none to be had."""
    try:
        parent = PathFinder.find_spec(package)
        if parent is None or parent.submodule_search_locations is None:
            return None
        spec = PathFinder.find_spec(f"{package}._crc32c", parent.submodule_search_locations)
        if spec is None or not isinstance(spec.loader, ExtensionFileLoader):
            return None
        module: Any = spec.loader.create_module(spec)
        spec.loader.exec_module(module)
        function: Checksum = module.crc32c
        return function if function(b"123456789") == 0xE3069283 else None
    except (ImportError, AttributeError, TypeError):
        return None


def _imported() -> Checksum:
    try:
        from crc32c import crc32c
    except ModuleNotFoundError:
        raise ModuleNotFoundError(
            f"the package crc32c is missing, which durabledbm needs: "
            f"'{sys.executable} -m pip install crc32c' installs it",
            name="crc32c",
        ) from None
    except ImportError as exc:
        raise ImportError(
            f"the package crc32c, which durabledbm needs, can't be imported ({exc}): "
            f"'{sys.executable} -m pip install crc32c --force-reinstall' may mend it",
            name="crc32c",
        ) from None
    return crc32c


crc32c: Checksum = from_extension("crc32c") or _imported()
