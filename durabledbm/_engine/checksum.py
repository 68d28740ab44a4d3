"""The checksum of everything on disk: CRC32C, one C function of the package `crc32c`.

The function is taken from the package's extension module by itself. What the package imports beside it (its own
command line, and the metadata of installed packages) costs more time than all of `import durabledbm`, and nothing of
it is needed. Where the extension module is not found so, the package is imported as usual: it is the same function.

A CRC is a remainder of polynomials, so what appending bytes does to it can be computed without reading them if they are
zeros (`with_zeros`, for the holes of sparse files), and the checksum of the end of some bytes follows from those of the
whole and of its beginning (`of_the_end`, where many overlapping runs are to be verified in one pass).
"""

from __future__ import annotations

import sys
from importlib.machinery import ExtensionFileLoader, PathFinder
from typing import Any, Protocol

__all__ = ["Checksum", "crc32c", "from_extension", "of_the_end", "with_zeros"]


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


_FEW = 1 << 16
"""So many zeros are read as fast as they are reckoned with."""


# Polynomials over the field of two elements, modulo that of CRC32C, as 32 bits each: the highest bit is the constant
# term, as in the checksum itself.

_POLYNOMIAL = 0x82F63B78
_ONE = 1 << 31


def _product(a: int, b: int) -> int:
    """The product of two polynomials."""
    result = 0
    while a:
        if a & _ONE:
            result ^= b
        a = a << 1 & 0xFFFFFFFF
        b = b >> 1 ^ (_POLYNOMIAL if b & 1 else 0)
    return result


_powers = [_ONE >> 8]
"""x to the power of 8, 16, 32 ...: what 1, 2, 4 ... more bytes multiply a remainder by."""


def _moved(value: int, size: int) -> int:
    """The remainder `value`, moved up by `size` bytes."""
    bit = 0
    while size >> bit:
        if len(_powers) == bit:
            _powers.append(_product(_powers[-1], _powers[-1]))
        if size >> bit & 1:
            value = _product(value, _powers[bit])
        bit += 1
    return value


def with_zeros(value: int, size: int) -> int:
    """The checksum of what has the checksum `value`, followed by `size` zero bytes, in a time that hardly depends on
    `size`.
    """
    if size <= _FEW:
        return crc32c(bytes(size), value)
    return _moved(value ^ 0xFFFFFFFF, size) ^ 0xFFFFFFFF


def of_the_end(whole: int, front: int, size: int) -> int:
    """The checksum of the last `size` bytes of something, from those of the `whole` and of the `front` before them."""
    return whole ^ _moved(front, size)
