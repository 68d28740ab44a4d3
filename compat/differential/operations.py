"""Operations that existing programs do with a dbm module, each as a function that says what it observed.

Every function gets a module (`open`, `error`) and the name of a database that does not exist yet, and
returns a string. The same functions run on the standard library's modules and on durabledbm;
`differences.py` lists where the answers may differ, and why.
"""

from __future__ import annotations

import os
import pathlib
import pickle
import weakref
from collections.abc import Callable
from typing import Any

Operation = Callable[[Any, str], str]
OPERATIONS: dict[str, Operation] = {}


def operation(function: Operation) -> Operation:
    OPERATIONS[function.__name__] = function
    return function


def observe(call: Callable[[], Any], module: Any) -> str:
    """The result of a call as text. The module's own error class has the same name for all modules."""
    try:
        result = call()
    except KeyError as exc:
        return f"KeyError({exc.args[0]!r})"
    except module.error:
        return "error"
    except OSError as exc:
        return f"OSError that is not the module's error: {type(exc).__name__}"
    except Exception as exc:
        return type(exc).__name__
    return repr(result)


def filled(module: Any, path: str, entries: dict[bytes, bytes]) -> None:
    db = module.open(path, "c")
    for key, value in entries.items():
        db[key] = value
    db.close()


def with_db(module: Any, path: str, use: Callable[[Any], Any], flag: str = "c", **entries: bytes) -> str:
    """What `use(db)` gives, on a database with these entries."""
    if entries or flag in "rw":
        filled(module, path, {name.encode(): value for name, value in entries.items()})
    db = module.open(path, flag)
    try:
        return observe(lambda: use(db), module)
    finally:
        db.close()


def assign(db: Any, key: Any, value: Any) -> Any:
    db[key] = value
    return db[key]


def delete(db: Any, key: Any) -> bool:
    del db[key]
    return key in db


# Opening


@operation
def open_missing_r(module: Any, path: str) -> str:
    return observe(lambda: module.open(path, "r"), module)


@operation
def open_missing_w(module: Any, path: str) -> str:
    return observe(lambda: module.open(path, "w"), module)


@operation
def open_missing_without_flag(module: Any, path: str) -> str:
    return observe(lambda: module.open(path).close(), module)


@operation
def open_missing_directory_c(module: Any, path: str) -> str:
    return observe(lambda: module.open(os.path.join(path, "x"), "c"), module)


@operation
def open_flag_letters(module: Any, path: str) -> str:
    return observe(lambda: module.open(path, "x"), module)


@operation
def open_flag_none(module: Any, path: str) -> str:
    return observe(lambda: module.open(path, None), module)


@operation
def open_name_is_int(module: Any, path: str) -> str:
    return observe(lambda: module.open(3, "c"), module)


@operation
def open_name_with_nul(module: Any, path: str) -> str:
    return observe(lambda: module.open(path + "\0x", "c"), module)


@operation
def open_name_bytes(module: Any, path: str) -> str:
    module.open(os.fsencode(path), "c").close()
    return observe(lambda: len(list_keys(module, path)), module)


@operation
def open_name_pathlike(module: Any, path: str) -> str:
    module.open(pathlib.Path(path), "c").close()
    return observe(lambda: len(list_keys(module, path)), module)


@operation
def open_name_not_ascii(module: Any, path: str) -> str:
    name = path + "-żółw"
    filled(module, name, {b"k": b"v"})
    return observe(lambda: list_keys(module, name), module)


@operation
def open_n_empties(module: Any, path: str) -> str:
    return with_db(module, path, lambda db: db.keys(), "n", k=b"v")


@operation
def open_c_keeps(module: Any, path: str) -> str:
    return with_db(module, path, lambda db: db.keys(), "c", k=b"v")


@operation
def open_n_over_garbage(module: Any, path: str) -> str:
    pathlib.Path(path).write_bytes(b"no database at all, but long enough to be looked at")
    return with_db(module, path, lambda db: db.keys(), "n")


@operation
def open_garbage_r(module: Any, path: str) -> str:
    pathlib.Path(path).write_bytes(b"no database at all, but long enough to be looked at")
    return observe(lambda: module.open(path, "r").keys(), module)


@operation
def open_empty_file_r(module: Any, path: str) -> str:
    pathlib.Path(path).touch()
    return observe(lambda: module.open(path, "r").keys(), module)


@operation
def open_empty_file_c(module: Any, path: str) -> str:
    pathlib.Path(path).touch()
    return with_db(module, path, lambda db: assign(db, b"k", b"v"))


@operation
def open_positional_mode(module: Any, path: str) -> str:
    old = os.umask(0o027)
    try:
        module.open(path, "c", 0o666).close()
    finally:
        os.umask(old)
    return " ".join(oct(os.stat(name).st_mode & 0o777) for name in files(path))


@operation
def files_are_the_name_alone(module: Any, path: str) -> str:
    filled(module, path, {b"k": b"v"})
    return " ".join(os.path.basename(name)[len(os.path.basename(path)) :] or "exact" for name in files(path))


@operation
def files_are_the_name_alone_while_open(module: Any, path: str) -> str:
    db = module.open(path, "c")
    db[b"k"] = b"v"
    found = files(path)
    db.close()
    return " ".join(os.path.basename(name)[len(os.path.basename(path)) :] or "exact" for name in found)


@operation
def open_twice_for_writing(module: Any, path: str) -> str:
    db = module.open(path, "c")
    try:
        return observe(lambda: module.open(path, "c").close(), module)
    finally:
        db.close()


@operation
def open_r_beside_a_writer(module: Any, path: str) -> str:
    db = module.open(path, "c")
    db[b"k"] = b"v"
    try:
        return observe(lambda: list_keys(module, path), module)
    finally:
        db.close()


@operation
def open_read_only_file(module: Any, path: str) -> str:
    filled(module, path, {b"k": b"v"})
    for name in files(path):
        os.chmod(name, 0o444)
    return observe(lambda: list_keys(module, path), module)


@operation
def dropped_handle_frees_the_file(module: Any, path: str) -> str:
    db = module.open(path, "c")
    db[b"k"] = b"v"
    del db
    return observe(lambda: module.open(path, "n").close(), module)


def list_keys(module: Any, path: str) -> list[bytes]:
    db = module.open(path, "r")
    try:
        return sorted(db.keys())
    finally:
        db.close()


def files(path: str) -> list[str]:
    directory, name = os.path.split(path)
    return sorted(os.path.join(directory, entry) for entry in os.listdir(directory) if entry.startswith(name))


# Keys and values


@operation
def keys_is_a_list_of_bytes(module: Any, path: str) -> str:
    return with_db(module, path, lambda db: (type(db.keys()).__name__, sorted(db.keys())), a=b"1", b=b"2")


@operation
def str_key_and_value(module: Any, path: str) -> str:
    return with_db(module, path, lambda db: (assign(db, "ü", "ö"), "ü" in db, "ü".encode() in db))


@operation
def bytearray_value(module: Any, path: str) -> str:
    return with_db(module, path, lambda db: assign(db, b"k", bytearray(b"v")))


@operation
def memoryview_value(module: Any, path: str) -> str:
    return with_db(module, path, lambda db: assign(db, b"k", memoryview(b"v")))


@operation
def bytearray_key(module: Any, path: str) -> str:
    return with_db(module, path, lambda db: db[bytearray(b"k")], k=b"v")


@operation
def int_value(module: Any, path: str) -> str:
    return with_db(module, path, lambda db: assign(db, b"k", 42))


@operation
def none_value(module: Any, path: str) -> str:
    return with_db(module, path, lambda db: assign(db, b"k", None))


@operation
def int_key_set(module: Any, path: str) -> str:
    return with_db(module, path, lambda db: assign(db, 42, b"v"))


@operation
def int_key_get(module: Any, path: str) -> str:
    return with_db(module, path, lambda db: db[42])


@operation
def int_key_in(module: Any, path: str) -> str:
    return with_db(module, path, lambda db: 42 in db)


@operation
def lone_surrogate_key(module: Any, path: str) -> str:
    return with_db(module, path, lambda db: assign(db, "\ud800", b"v"))


@operation
def empty_key(module: Any, path: str) -> str:
    return with_db(module, path, lambda db: (assign(db, b"", b"v"), b"" in db, db.keys()))


@operation
def empty_value(module: Any, path: str) -> str:
    return with_db(module, path, lambda db: (assign(db, b"k", b""), b"k" in db, db.get(b"k")))


@operation
def nul_bytes(module: Any, path: str) -> str:
    return with_db(module, path, lambda db: (assign(db, b"\0a\0", b"\0\xff\0"), db.keys()))


@operation
def newlines_and_quotes(module: Any, path: str) -> str:
    return with_db(module, path, lambda db: (assign(db, b"\n'\"\\", b"\r\n"), db.keys()))


@operation
def value_of_a_megabyte(module: Any, path: str) -> str:
    return with_db(module, path, lambda db: len(assign(db, b"k", bytes(2**20))))


@operation
def key_of_10000_bytes(module: Any, path: str) -> str:
    return with_db(module, path, lambda db: len(assign(db, b"k" * 10_000, b"v")))


@operation
def replaced_value(module: Any, path: str) -> str:
    return with_db(
        module, path, lambda db: (assign(db, b"k", b"a longer one"), assign(db, b"k", b""), len(db)), k=b"v"
    )


# Missing keys


@operation
def missing_key_bytes(module: Any, path: str) -> str:
    return with_db(module, path, lambda db: db[b"missing"])


@operation
def missing_key_str(module: Any, path: str) -> str:
    return with_db(module, path, lambda db: db["missing"])


@operation
def missing_key_delete(module: Any, path: str) -> str:
    return with_db(module, path, lambda db: delete(db, "missing"))


@operation
def get_default(module: Any, path: str) -> str:
    return with_db(module, path, lambda db: (db.get(b"k"), db.get(b"no"), db.get("no", 7)), k=b"v")


@operation
def setdefault_present(module: Any, path: str) -> str:
    return with_db(module, path, lambda db: db.setdefault(b"k", b"other"), k=b"v")


@operation
def setdefault_missing(module: Any, path: str) -> str:
    return with_db(module, path, lambda db: (db.setdefault(b"k", b"v"), db[b"k"]))


@operation
def setdefault_missing_str(module: Any, path: str) -> str:
    return with_db(module, path, lambda db: (db.setdefault("k", "v"), db["k"]))


@operation
def setdefault_missing_none(module: Any, path: str) -> str:
    return with_db(module, path, lambda db: db.setdefault(b"k"))


# The whole mapping


@operation
def length_and_truth(module: Any, path: str) -> str:
    def use(db: Any) -> Any:
        before = len(db), bool(db)
        db[b"k"] = b"v"
        return before, len(db), bool(db)

    return with_db(module, path, use)


@operation
def iterate(module: Any, path: str) -> str:
    return with_db(module, path, sorted, a=b"1", b=b"2")


@operation
def items(module: Any, path: str) -> str:
    return with_db(module, path, lambda db: sorted(db.items()), a=b"1", b=b"2")


@operation
def values(module: Any, path: str) -> str:
    return with_db(module, path, lambda db: sorted(db.values()), a=b"1", b=b"2")


@operation
def pop(module: Any, path: str) -> str:
    return with_db(module, path, lambda db: (db.pop(b"a"), db.pop(b"a", None), len(db)), a=b"1", b=b"2")


@operation
def update(module: Any, path: str) -> str:
    return with_db(module, path, lambda db: (db.update({"x": "1"}, y=b"2"), sorted(db.keys())))


@operation
def clear(module: Any, path: str) -> str:
    return with_db(module, path, lambda db: (db.clear(), len(db)), a=b"1", b=b"2")


@operation
def equals_a_dict(module: Any, path: str) -> str:
    return with_db(module, path, lambda db: db == {b"a": b"1"}, a=b"1")


@operation
def hashable(module: Any, path: str) -> str:
    return with_db(module, path, lambda db: bool(hash(db)) or True)


@operation
def repr_does_not_show_content(module: Any, path: str) -> str:
    return with_db(module, path, lambda db: "secret" in repr(db), k=b"secret")


@operation
def delete_while_going_through_keys(module: Any, path: str) -> str:
    def use(db: Any) -> int:
        for key in db.keys():  # noqa: SIM118 - the list is the point
            del db[key]
        return len(db)

    return with_db(module, path, use, a=b"1", b=b"2", c=b"3")


@operation
def delete_while_iterating(module: Any, path: str) -> str:
    def use(db: Any) -> int:
        for key in db:
            del db[key]
        return len(db)

    return with_db(module, path, use, a=b"1", b=b"2", c=b"3")


@operation
def insert_while_iterating(module: Any, path: str) -> str:
    def use(db: Any) -> list[bytes]:
        seen = []
        for key in db:
            seen.append(key)
            if len(seen) < 10:
                db[key + b"x"] = b"new"
        return sorted(seen)

    return with_db(module, path, use, a=b"1", b=b"2", c=b"3")


@operation
def firstkey_and_nextkey(module: Any, path: str) -> str:
    def use(db: Any) -> list[bytes]:
        found, key = [], db.firstkey()
        while key is not None:
            found.append(key)
            key = db.nextkey(key)
        return sorted(found)

    return with_db(module, path, use, a=b"1", b=b"2")


@operation
def sync_and_reorganize(module: Any, path: str) -> str:
    return with_db(module, path, lambda db: (db.sync(), db.reorganize(), db[b"a"]), a=b"1")


@operation
def reads_see_another_handles_writes(module: Any, path: str) -> str:
    def use() -> Any:
        one = module.open(path, "c")
        try:
            one[b"k"] = b"1"
            two = module.open(path, "w")
            try:
                return two[b"k"], assign(two, b"k", b"2"), one[b"k"]
            finally:
                two.close()
        finally:
            one.close()

    return observe(use, module)


# Read-only handles


@operation
def read_only_set(module: Any, path: str) -> str:
    return with_db(module, path, lambda db: assign(db, b"k", b"other"), "r", k=b"v")


@operation
def read_only_delete(module: Any, path: str) -> str:
    return with_db(module, path, lambda db: delete(db, b"k"), "r", k=b"v")


@operation
def read_only_delete_missing(module: Any, path: str) -> str:
    return with_db(module, path, lambda db: delete(db, b"no"), "r", k=b"v")


@operation
def read_only_clear(module: Any, path: str) -> str:
    return with_db(module, path, lambda db: db.clear(), "r", k=b"v")


@operation
def read_only_setdefault_missing(module: Any, path: str) -> str:
    return with_db(module, path, lambda db: db.setdefault(b"no", b"v"), "r", k=b"v")


@operation
def read_only_setdefault_present(module: Any, path: str) -> str:
    return with_db(module, path, lambda db: db.setdefault(b"k", b"other"), "r", k=b"v")


@operation
def read_only_sync(module: Any, path: str) -> str:
    return with_db(module, path, lambda db: db.sync(), "r", k=b"v")


@operation
def read_only_update_with_nothing(module: Any, path: str) -> str:
    return with_db(module, path, lambda db: db.update({}), "r", k=b"v")


@operation
def read_only_pop_missing_default(module: Any, path: str) -> str:
    return with_db(module, path, lambda db: db.pop(b"no", 7), "r", k=b"v")


# The end


def closed(module: Any, path: str, use: Callable[[Any], Any]) -> str:
    filled(module, path, {b"k": b"v"})
    db = module.open(path, "w")
    db.close()
    return observe(lambda: use(db), module)


@operation
def closed_get(module: Any, path: str) -> str:
    return closed(module, path, lambda db: db[b"k"])


@operation
def closed_set(module: Any, path: str) -> str:
    return closed(module, path, lambda db: assign(db, b"k", b"v"))


@operation
def closed_len(module: Any, path: str) -> str:
    return closed(module, path, len)


@operation
def closed_bool(module: Any, path: str) -> str:
    return closed(module, path, bool)


@operation
def closed_in(module: Any, path: str) -> str:
    return closed(module, path, lambda db: b"k" in db)


@operation
def closed_keys(module: Any, path: str) -> str:
    return closed(module, path, lambda db: list(db.keys()))


@operation
def closed_sync(module: Any, path: str) -> str:
    return closed(module, path, lambda db: db.sync())


@operation
def closed_twice(module: Any, path: str) -> str:
    return closed(module, path, lambda db: db.close())


@operation
def closed_with(module: Any, path: str) -> str:
    def use(db: Any) -> str:
        with db:
            return "entered"

    return closed(module, path, use)


@operation
def closed_under_an_iterator(module: Any, path: str) -> str:
    def use(db: Any) -> Any:
        iterator = iter(db)
        next(iterator)
        db.close()
        return next(iterator)

    return with_db(module, path, use, a=b"1", b=b"2")


@operation
def with_closes_and_keeps_what_was_written(module: Any, path: str) -> str:
    def use() -> Any:
        try:
            with module.open(path, "c") as db:
                db[b"k"] = b"v"
                raise RuntimeError
        except RuntimeError:
            pass
        return observe(lambda: db[b"k"], module), list_keys(module, path)

    return observe(use, module)


@operation
def pickled(module: Any, path: str) -> str:
    return with_db(module, path, lambda db: type(pickle.dumps(db)).__name__, k=b"v")


@operation
def weakly_referenced(module: Any, path: str) -> str:
    return with_db(module, path, lambda db: weakref.ref(db)() is db)


@operation
def initialised_again(module: Any, path: str) -> str:
    return with_db(module, path, lambda db: db.__init__(path, flag="n", mode=0o666))


@operation
def error_is_an_oserror(module: Any, path: str) -> str:
    return repr(issubclass(module.error, OSError))


@operation
def error_has_errno_and_name(module: Any, path: str) -> str:
    try:
        module.open(path, "r")
    except module.error as exc:
        name = "none" if exc.filename is None else "as given" if exc.filename == path else "another"
        return f"errno {exc.errno}, filename {name}"
    return "no error"
