"""Builds the kernels, `durabledbm/_engine/_kernels.c`: for a wheel, as hatchling's build hook, or in place.

    python .ci/kernels.py [OPTION_OF_THE_COMPILER ...]

builds them into the tree that this file is in. There is one build for all versions of CPython from 3.10 on (its stable
ABI). Where there is no compiler, and on systems that the kernels are not for, a wheel is built without them: then
durabledbm runs on its Python functions alone. `DURABLEDBM_PURE=1 pip install .` asks for that.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from zlib import crc32

ROOT = Path(__file__).resolve().parent.parent
SOURCE = Path("durabledbm/_engine/_kernels.c")
MODULE = Path("durabledbm/_engine/_kernels.abi3.so")
OLDEST = 0x030A0000


def why_not() -> str | None:
    """Why the kernels are not for this interpreter, or None if they are."""
    if os.environ.get("DURABLEDBM_PURE", "0") not in ("", "0"):
        return "DURABLEDBM_PURE asks for Python"
    if sys.implementation.name != "cpython" or os.name != "posix":
        return "they are for CPython on POSIX systems"
    if sys.byteorder == "big":
        return "they are for little-endian machines"
    if sysconfig.get_config_var("Py_GIL_DISABLED"):
        return "they are not for free-threaded builds"
    return None


def build(root: Path, target: Path, options: Sequence[str] = ()) -> str | None:
    """Compile the kernels of the tree `root` to `target`. None, or why that failed."""
    source = root / SOURCE
    built = target.with_suffix(f".{os.getpid()}")
    compiler = shlex.split(os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc")
    shared = ["-bundle", "-undefined", "dynamic_lookup"] if sys.platform == "darwin" else ["-shared"]
    command = [
        *compiler, "-std=c11", "-O2", "-Wall", "-Wextra", "-Wno-unused-parameter", "-fPIC", *shared,
        f"-DPy_LIMITED_API={OLDEST:#x}", f"-DSOURCE={crc32(source.read_bytes()) >> 1}",
        "-I", sysconfig.get_path("include"), *options, str(source), "-o", str(built),
    ]  # fmt: skip
    try:
        subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        built.replace(target)  # a running program keeps the file that it has
    except OSError as exc:
        return f"there is no compiler: {exc}"
    except subprocess.CalledProcessError as exc:
        return f"the compiler failed:\n{exc.stdout}"
    finally:
        built.unlink(missing_ok=True)
    return None


def get_build_hook() -> type:
    """What hatchling calls."""
    from hatchling.builders.hooks.plugin.interface import BuildHookInterface

    class Kernels(BuildHookInterface):  # type: ignore[misc, type-arg]
        """A wheel with kernels is tagged for the stable ABI and the platform, one without for every interpreter."""

        def initialize(self, version: str, build_data: dict[str, Any]) -> None:
            root = Path(self.root)
            if version == "editable":
                target = root / MODULE
            else:
                self.place = tempfile.TemporaryDirectory()
                target = Path(self.place.name, MODULE.name)
            problem = why_not() or build(root, target)
            if problem is not None:
                self.app.display_warning(f"durabledbm is built without kernels: {problem}")
            elif version != "editable":
                platform = sysconfig.get_platform().replace("-", "_").replace(".", "_")
                build_data["pure_python"] = False
                build_data["tag"] = f"cp3{OLDEST >> 16 & 255}-abi3-{platform}"
                build_data["force_include"][str(target)] = MODULE.as_posix()

        def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
            if version != "editable":
                self.place.cleanup()

    return Kernels


if __name__ == "__main__":
    sys.exit(why_not() or build(ROOT, ROOT / MODULE, sys.argv[1:]))
