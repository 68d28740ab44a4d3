"""The programs that are tried with durabledbm, and the virtual environments that they are installed in.

`python -m compat.clients.venvs [NAME…]` makes the environments, one per program, in this directory or in
the one that the environment variable DURABLEDBM_CLIENTS names. durabledbm itself is not installed there but
found by PYTHONPATH.
"""

from __future__ import annotations

import os
import subprocess
import sys
import venv
from pathlib import Path

__all__ = ["REQUIREMENTS", "directory", "python_of"]

REQUIREMENTS = {
    "beaker": ["Beaker==1.14.1", "setuptools"],
    "doit": ["doit==0.37.0"],
    "scons": ["SCons==4.11.1"],
    "scrapy": ["Scrapy==2.19.0"],
    "zarr": ["zarr==2.18.7", "numcodecs<0.16"],
}
ALWAYS = ["crc32c>=2.4"]  # what durabledbm needs


def directory(name: str) -> Path:
    """Where the environment of this program is, or would be."""
    return Path(os.environ.get("DURABLEDBM_CLIENTS", Path(__file__).parent)) / f".venv-{name}"


def python_of(name: str) -> Path | None:
    """The interpreter of this program's environment, or None if it was not made."""
    python = directory(name) / "bin" / "python"
    return python if python.exists() else None


def main() -> None:
    for name in sys.argv[1:] or REQUIREMENTS:
        venv.create(directory(name), with_pip=True, clear=True)
        command = [directory(name) / "bin" / "python", "-m", "pip", "install", "--quiet", *ALWAYS]
        subprocess.run([*command, *REQUIREMENTS[name]], check=True)


if __name__ == "__main__":
    main()
