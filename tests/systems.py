"""Which system the tests run on, and marks for what only some systems have.

A test that is skipped on Windows says which fact of Windows it cannot be shown on: `@only_posix("Windows has no ...")`.
"""

from __future__ import annotations

import os
import signal
import sys

import pytest

WINDOWS = sys.platform == "win32"

IS_ROOT = hasattr(os, "geteuid") and os.geteuid() == 0
"""Whether permissions mean nothing to this process, and it can give files away."""


def only_posix(reason: str) -> pytest.MarkDecorator:
    """Skip the test on Windows. `reason`: the fact of Windows because of which it cannot hold there."""
    return pytest.mark.skipif(WINDOWS, reason=reason)


KILL = getattr(signal, "SIGKILL", signal.SIGTERM)
"""What ends a process that is sent it without letting it know: on Windows that is all that one process can send another."""

ENDINGS = [KILL] if WINDOWS else [signal.SIGTERM, signal.SIGHUP, signal.SIGKILL]
"""The signals that end a process that does nothing about them."""

needs_root = pytest.mark.skipif(not IS_ROOT, reason="only root can give files away")
needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
needs_mode = only_posix("Windows has access control lists, which a new file inherits, and no mode")
needs_pipe_files = pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no pipes with names in a directory")
