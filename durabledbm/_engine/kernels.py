"""Kernels: which of two twins runs, the Python function or the one in C.

The inner loops of `node`, `page` and `tree` are written twice. The Python functions are complete, they are the
reference, and they run wherever there is nothing else. Each that is marked with `twin` has a twin of the same name in
`_kernels.c`, a function of its arguments as well, which gives the same bytes. That one takes its place if the extension
module was built, and for this version. `DURABLEDBM_PURE=1` in the environment keeps to Python.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from importlib import import_module
from typing import Any, TypeVar

__all__ = ["INTERFACE", "PYTHON", "RUNNING", "introduce", "twin"]

INTERFACE = 1
"""What the functions in C expect of this version of the package: one built for another version is not used."""

F = TypeVar("F", bound=Callable[..., Any])

PYTHON: dict[str, Callable[..., Any]] = {}
"""The Python functions that have a twin, by name."""

_CHECK = b"123456789"
_CHECKSUM = 0xE3069283
"""CRC32C of these bytes, as everyone publishes it."""


def _module() -> Any:
    """The extension module, or None if Python is to be used."""
    if os.environ.get("DURABLEDBM_PURE", "0") not in ("", "0"):
        return None
    if sys.byteorder == "big" or "t" in getattr(sys, "abiflags", ""):
        return None  # not tested there; and without the interpreter's lock lists may change under a kernel
    try:
        module = import_module("._kernels", __package__)
    except ImportError:
        return None
    if getattr(module, "INTERFACE", None) != INTERFACE or module.crc32c(_CHECK, 0) != _CHECKSUM:
        return None
    return module


_kernels = _module()

RUNNING = _kernels is not None
"""Whether kernels are running."""


def twin(function: F) -> F:
    """The function in C of the same name, if kernels are running; else the function itself."""
    name = function.__name__
    PYTHON[name] = function
    return function if _kernels is None else getattr(_kernels, name)


def introduce(overflow: type) -> None:
    """Tell the kernels which class stands for large values."""
    if _kernels is not None:
        _kernels.use(overflow)
