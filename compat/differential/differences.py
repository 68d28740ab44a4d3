"""Where durabledbm answers otherwise than a dbm module of the standard library, and why that was decided.

`EXPECTED` is what durabledbm answers to each operation. `DIFFERENCES` has, under its reason, each operation
to which some module answers otherwise, with that module's answers (several where versions of Python
differ). docs/compat.md shows the same, and a test compares.
"""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["DIFFERENCES", "EXPECTED", "Difference", "markdown"]

EXPECTED = {
    "open_missing_r": "error",
    "open_missing_w": "error",
    "open_missing_without_flag": "error",
    "open_missing_directory_c": "error",
    "open_flag_letters": "ValueError",
    "open_flag_none": "ValueError",
    "open_name_is_int": "TypeError",
    "open_name_with_nul": "ValueError",
    "open_name_bytes": "0",
    "open_name_pathlike": "0",
    "open_name_not_ascii": "[b'k']",
    "open_n_empties": "[]",
    "open_c_keeps": "[b'k']",
    "open_n_over_garbage": "[]",
    "open_garbage_r": "error",
    "open_empty_file_r": "[]",
    "open_empty_file_c": "b'v'",
    "open_positional_mode": "0o640",
    "files_are_the_name_alone": "exact",
    "files_are_the_name_alone_while_open": "exact",
    "open_twice_for_writing": "None",
    "open_r_beside_a_writer": "[b'k']",
    "open_read_only_file": "[b'k']",
    "dropped_handle_frees_the_file": "None",
    "keys_is_a_list_of_bytes": "('list', [b'a', b'b'])",
    "str_key_and_value": "(b'\\xc3\\xb6', True, True)",
    "bytearray_value": "b'v'",
    "memoryview_value": "b'v'",
    "bytearray_key": "b'v'",
    "int_value": "TypeError",
    "none_value": "TypeError",
    "int_key_set": "TypeError",
    "int_key_get": "TypeError",
    "int_key_in": "TypeError",
    "lone_surrogate_key": "UnicodeEncodeError",
    "empty_key": "(b'v', True, [b''])",
    "empty_value": "(b'', True, b'')",
    "nul_bytes": "(b'\\x00\\xff\\x00', [b'\\x00a\\x00'])",
    "newlines_and_quotes": '(b\'\\r\\n\', [b\'\\n\\\'"\\\\\'])',
    "value_of_a_megabyte": "1048576",
    "key_of_10000_bytes": "1",
    "replaced_value": "(b'a longer one', b'', 1)",
    "missing_key_bytes": "KeyError(b'missing')",
    "missing_key_str": "KeyError('missing')",
    "missing_key_delete": "KeyError('missing')",
    "get_default": "(b'v', None, 7)",
    "setdefault_present": "b'v'",
    "setdefault_missing": "(b'v', b'v')",
    "setdefault_missing_str": "(b'v', b'v')",
    "setdefault_missing_none": "TypeError",
    "length_and_truth": "((0, False), 1, True)",
    "iterate": "[b'a', b'b']",
    "items": "[(b'a', b'1'), (b'b', b'2')]",
    "values": "[b'1', b'2']",
    "pop": "(b'1', None, 1)",
    "update": "(None, [b'x', b'y'])",
    "clear": "(None, 0)",
    "equals_a_dict": "True",
    "hashable": "TypeError",
    "repr_does_not_show_content": "False",
    "delete_while_going_through_keys": "0",
    "delete_while_iterating": "0",
    "insert_while_iterating": "[b'a', b'b', b'c']",
    "firstkey_and_nextkey": "[b'a', b'b']",
    "sync_and_reorganize": "(None, None, b'1')",
    "reads_see_another_handles_writes": "(b'1', b'2', b'2')",
    "read_only_set": "error",
    "read_only_delete": "error",
    "read_only_delete_missing": "error",
    "read_only_clear": "error",
    "read_only_setdefault_missing": "error",
    "read_only_setdefault_present": "b'v'",
    "read_only_sync": "None",
    "read_only_update_with_nothing": "None",
    "read_only_pop_missing_default": "7",
    "closed_get": "error",
    "closed_set": "error",
    "closed_len": "error",
    "closed_bool": "error",
    "closed_in": "error",
    "closed_keys": "error",
    "closed_sync": "error",
    "closed_twice": "None",
    "closed_with": "'entered'",
    "closed_under_an_iterator": "error",
    "with_closes_and_keeps_what_was_written": "('error', [b'k'])",
    "pickled": "TypeError",
    "weakly_referenced": "True",
    "initialised_again": "error",
    "error_is_an_oserror": "True",
    "error_has_errno_and_name": "errno 2, filename as given",
}


class Difference(NamedTuple):
    """Operations that differ for one reason: operation -> module -> its answers."""

    reason: str
    operations: dict[str, dict[str, tuple[str, ...]]]


DIFFERENCES = [
    Difference(
        (
            "More is a dict here: dbm.gnu and dbm.ndbm lack these methods (some come with Python 3.13), "
            "dbm.dumb and dbm.sqlite3 those of dbm.gnu."
        ),
        {
            "iterate": {"dbm.gnu": ("TypeError",), "dbm.ndbm": ("TypeError",)},
            "items": {"dbm.gnu": ("AttributeError",), "dbm.ndbm": ("AttributeError",)},
            "values": {"dbm.gnu": ("AttributeError",), "dbm.ndbm": ("AttributeError",)},
            "pop": {"dbm.gnu": ("AttributeError",), "dbm.ndbm": ("AttributeError",)},
            "update": {"dbm.gnu": ("AttributeError",), "dbm.ndbm": ("AttributeError",)},
            "clear": {"dbm.gnu": ("AttributeError",), "dbm.ndbm": ("AttributeError",)},
            "equals_a_dict": {"dbm.gnu": ("False",), "dbm.ndbm": ("False",)},
            "firstkey_and_nextkey": {
                "dbm.dumb": ("AttributeError",),
                "dbm.ndbm": ("AttributeError",),
                "dbm.sqlite3": ("AttributeError",),
            },
            "sync_and_reorganize": {
                "dbm.dumb": ("AttributeError",),
                "dbm.ndbm": ("AttributeError",),
                "dbm.sqlite3": ("AttributeError",),
            },
            "read_only_sync": {"dbm.ndbm": ("AttributeError",), "dbm.sqlite3": ("AttributeError",)},
            "read_only_clear": {"dbm.gnu": ("AttributeError",), "dbm.ndbm": ("AttributeError",)},
            "read_only_update_with_nothing": {
                "dbm.gnu": ("AttributeError",),
                "dbm.ndbm": ("AttributeError",),
            },
            "read_only_pop_missing_default": {
                "dbm.gnu": ("AttributeError",),
                "dbm.ndbm": ("AttributeError",),
            },
            "weakly_referenced": {"dbm.gnu": ("TypeError",), "dbm.ndbm": ("TypeError",)},
        },
    ),
    Difference(
        (
            "Whoever equals a dict with the same entries can't have a hash; dbm.gnu's and dbm.ndbm's objects"
            " are hashable by identity."
        ),
        {
            "hashable": {"dbm.gnu": ("True",), "dbm.ndbm": ("True",)},
        },
    ),
    Difference(
        (
            "An iterator goes over the state at its start, whatever is written meanwhile, and ends with an "
            "error when the database is closed."
        ),
        {
            "delete_while_iterating": {
                "dbm.dumb": ("RuntimeError",),
                "dbm.gnu": ("TypeError",),
                "dbm.ndbm": ("TypeError",),
            },
            "insert_while_iterating": {
                "dbm.dumb": ("RuntimeError",),
                "dbm.gnu": ("TypeError",),
                "dbm.ndbm": ("TypeError",),
            },
            "closed_under_an_iterator": {
                "dbm.dumb": ("b'b'",),
                "dbm.gnu": ("TypeError",),
                "dbm.ndbm": ("TypeError",),
            },
        },
    ),
    Difference(
        "Exactly one file of exactly that name, at rest and while open.",
        {
            "files_are_the_name_alone": {"dbm.dumb": (".bak .dat .dir",), "dbm.ndbm": (".db",)},
            "files_are_the_name_alone_while_open": {
                "dbm.dumb": (".dat .dir",),
                "dbm.ndbm": (".db",),
                "dbm.sqlite3": ("exact -shm -wal",),
            },
            "open_positional_mode": {"dbm.dumb": ("0o640 0o640",)},
        },
    ),
    Difference(
        (
            "Opening does not fail because others have the file open, and every handle sees what the others "
            "have written."
        ),
        {
            "open_twice_for_writing": {"dbm.gnu": ("error",)},
            "open_r_beside_a_writer": {"dbm.gnu": ("error",), "dbm.ndbm": ("[]",)},
            "reads_see_another_handles_writes": {"dbm.gnu": ("error",), "dbm.ndbm": ("KeyError(b'k')",)},
        },
    ),
    Difference(
        'The default flag is "r", as `dbm.open` documents it; dbm.dumb alone creates.',
        {
            "open_missing_without_flag": {"dbm.dumb": ("None",)},
        },
    ),
    Difference(
        (
            "A wrong flag is a ValueError, as in dbm.dumb and dbm.sqlite3; dbm.gnu and dbm.ndbm raise their "
            "error, or TypeError for None."
        ),
        {
            "open_flag_letters": {"dbm.gnu": ("error",), "dbm.ndbm": ("error",)},
            "open_flag_none": {"dbm.gnu": ("TypeError",), "dbm.ndbm": ("TypeError",)},
        },
    ),
    Difference(
        "Names may be bytes and paths on every Python; dbm.dumb takes them from Python 3.11 on.",
        {
            "open_name_bytes": {"dbm.dumb": ("TypeError", "0",)},
            "open_name_pathlike": {"dbm.dumb": ("TypeError", "0",)},
        },
    ),
    Difference(
        "A file of 0 bytes is a database that was not initialised yet.",
        {
            "open_empty_file_r": {
                "dbm.dumb": ("error",),
                "dbm.gnu": ("error",),
                "dbm.ndbm": ("error",),
                "dbm.sqlite3": ("error",),
            },
        },
    ),
    Difference(
        (
            "Every failure of a file is the module's error, with errno and the file's name where there are "
            "any."
        ),
        {
            "open_missing_directory_c": {
                "dbm.sqlite3": ("OSError that is not the module's error: FileNotFoundError",),
            },
            "open_garbage_r": {"dbm.sqlite3": ("DatabaseError",)},
            "error_has_errno_and_name": {
                "dbm.dumb": ("errno 2, filename another",),
                "dbm.sqlite3": ("errno None, filename none",),
            },
        },
    ),
    Difference(
        "All bytes-like types are keys and values, as in dbm.sqlite3.",
        {
            "bytearray_value": {"dbm.gnu": ("TypeError",), "dbm.ndbm": ("TypeError",)},
            "memoryview_value": {
                "dbm.dumb": ("TypeError",),
                "dbm.gnu": ("TypeError",),
                "dbm.ndbm": ("TypeError",),
            },
            "bytearray_key": {
                "dbm.dumb": ("TypeError",),
                "dbm.gnu": ("TypeError",),
                "dbm.ndbm": ("TypeError",),
            },
        },
    ),
    Difference(
        (
            "Other types are a TypeError in reading and writing, as in dbm.gnu: a number stored as its "
            "digits, or a look-up that can never succeed, hides a mistake."
        ),
        {
            "int_value": {"dbm.sqlite3": ("b'42'",)},
            "int_key_set": {"dbm.sqlite3": ("b'v'",)},
            "int_key_get": {"dbm.dumb": ("KeyError(42)",), "dbm.sqlite3": ("KeyError(42)",)},
            "int_key_in": {"dbm.dumb": ("False",), "dbm.sqlite3": ("False",)},
            "none_value": {"dbm.sqlite3": ("error",)},
            "setdefault_missing_none": {"dbm.ndbm": ("b''",), "dbm.sqlite3": ("error",)},
        },
    ),
    Difference(
        "The UnicodeEncodeError of a str that has no UTF-8 form comes out as it is.",
        {
            "lone_surrogate_key": {"dbm.gnu": ("TypeError",), "dbm.ndbm": ("TypeError",)},
        },
    ),
    Difference(
        "A missing key is a KeyError with the key as passed; dbm.dumb passes it encoded.",
        {
            "missing_key_str": {"dbm.dumb": ("KeyError(b'missing')",)},
            "missing_key_delete": {"dbm.dumb": ("KeyError(b'missing')",)},
        },
    ),
    Difference(
        "`setdefault` returns what is stored, bytes, as in dbm.gnu, and not what was passed.",
        {
            "setdefault_missing_str": {
                "dbm.dumb": ("('v', b'v')",),
                "dbm.ndbm": ("('v', b'v')",),
                "dbm.sqlite3": ("('v', b'v')",),
            },
        },
    ),
    Difference(
        "Empty keys and values are entries like others; Berkeley DB's ndbm loses them.",
        {
            "empty_key": {"dbm.ndbm": ("(b'v', True, [])",)},
            "empty_value": {"dbm.ndbm": ("KeyError(b'k')",)},
        },
    ),
    Difference(
        "A use after `close()` is an error, `sync()` among them, as in dbm.gnu.",
        {
            "closed_sync": {
                "dbm.dumb": ("None",),
                "dbm.ndbm": ("AttributeError",),
                "dbm.sqlite3": ("AttributeError",),
            },
        },
    ),
    Difference(
        "Calling `__init__` again is an error, as in dbm.sqlite3.",
        {
            "initialised_again": {"dbm.dumb": ("None",), "dbm.gnu": ("None",), "dbm.ndbm": ("None",)},
        },
    ),
    Difference(
        (
            "A handle can't be pickled; dbm.dumb pickles its insides, and two processes then overwrite each "
            "other's index."
        ),
        {
            "pickled": {"dbm.dumb": ("'bytes'",)},
        },
    ),
]


def markdown() -> str:
    """The table for docs/compat.md."""
    lines = ["| operation | durabledbm | others |", "| --- | --- | --- |"]
    for reason, operations in DIFFERENCES:
        lines.append(f"| **{reason}** | | |")
        for operation, others in operations.items():
            answers = "; ".join(f"{name} {' or '.join(map(_code, found))}" for name, found in others.items())
            lines.append(f"| {operation.replace('_', ' ')} | {_code(EXPECTED[operation])} | {answers} |")
    return "\n".join(lines) + "\n"


def _code(answer: str) -> str:
    return f"`{answer}`"
