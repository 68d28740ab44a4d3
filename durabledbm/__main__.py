"""The program `durabledbm`, and `python -m durabledbm`."""

import sys

_CONTROL_C_EXIT = -0x3FFFFEC6
"""STATUS_CONTROL_C_EXIT, by which a shell of Windows knows a program that Ctrl-C has ended; as a signed number."""


def main() -> None:
    """Run the command line of this process, and end it."""
    try:
        from .cli.app import main as run

        status = run()
    except KeyboardInterrupt:  # while its modules were imported
        status = 130
    if status == 130:  # Ctrl-C: see `cli.app`
        _die_of_ctrl_c()
    sys.exit(status)


def _die_of_ctrl_c() -> None:
    """End this process by the signal itself: a shell ends its loop only then."""
    import os
    import signal

    if os.name == "nt":
        sys.exit(_CONTROL_C_EXIT)
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    os.kill(os.getpid(), signal.SIGINT)


if __name__ == "__main__":
    main()
