"""The program `durabledbm`, and `python -m durabledbm`."""

import os
import signal
import sys


def main() -> None:
    """Run the command line of this process, and end it."""
    from .cli.app import CTRL_C
    from .cli.app import main as run

    status = run()
    if status == CTRL_C:
        # A shell ends its loop only if the program died of the signal.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    sys.exit(status)


if __name__ == "__main__":
    main()
