"""doit: two tasks, the second of which depends on the first."""

from pathlib import Path

DOIT_CONFIG = {"backend": "dbm", "dep_file": "state"}


def task_first():
    return {
        "actions": [lambda: Path("middle").write_text(Path("input").read_text().upper()) and None],
        "file_dep": ["input"],
        "targets": ["middle"],
    }


def task_second():
    return {
        "actions": [lambda: Path("output").write_text(Path("middle").read_text() * 2) and None],
        "file_dep": ["middle"],
        "targets": ["output"],
    }
