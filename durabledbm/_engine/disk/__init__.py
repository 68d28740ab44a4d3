"""The disk of this machine: `FileVolume`, its file system, `FileDisk`, a file in it, and `take_owner`."""

from __future__ import annotations

import sys

if sys.platform == "win32":
    from .kernel32 import FileVolume
    from .windows import WindowsDisk as FileDisk
    from .windows import take_owner
else:
    from .posix import FileDisk, FileVolume, take_owner

__all__ = ["FileDisk", "FileVolume", "take_owner"]
