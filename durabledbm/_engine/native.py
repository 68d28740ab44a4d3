"""The disk of this machine: `FileVolume`, its file system, and `FileDisk`, a file in it."""

from __future__ import annotations

import sys

if sys.platform == "win32":
    from .kernel32 import FileVolume
    from .windows import WindowsDisk as FileDisk
else:
    from .posix import FileDisk, FileVolume

__all__ = ["FileDisk", "FileVolume"]
