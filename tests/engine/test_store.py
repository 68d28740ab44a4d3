"""The store: what readers see of the writers of other handles, and who may write when."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from weakref import WeakKeyDictionary

import pytest
from simdisk import Fault, Operation, SimVolume, disk_error

from durabledbm._engine.changeset import ChangeSet
from durabledbm._engine.commit import Committer
from durabledbm._engine.locks import WriterLock
from durabledbm._engine.meta import META_AREA, META_SIZE, STAMP_SIZE, Extent, Meta, decode_meta, encode_meta
from durabledbm._engine.readers import Reader
from durabledbm._engine.store import Store
from durabledbm._engine.threads import Lease
from durabledbm._engine.tree import Tree
from durabledbm._engine.view import State, View
from durabledbm.errors import BusyError, ClosedError, CorruptionError, ReadOnlyError, error

from .pieces import DATABASE_ID, PATH, empty_file

Opener = Callable[..., Store]


@pytest.fixture
def volume() -> SimVolume:
    return SimVolume({PATH: empty_file()})


@pytest.fixture
def opened(volume: SimVolume) -> Iterator[Opener]:
    """A function that opens the file once more."""
    stores: list[Store] = []

    def open_again(*, writable: bool = True, cache_size: int = 1 << 20) -> Store:
        disk = volume.open(PATH, writable=writable)
        stores.append(Store(volume, disk, page_size=4096, cache_size=cache_size))
        return stores[-1]

    yield open_again
    for store in stores:
        store.close()


_committers: WeakKeyDictionary[Store, Committer] = WeakKeyDictionary()


def committer(store: Store) -> Committer:
    return _committers.setdefault(store, Committer(store))


def put(store: Store, sync: bool = True, **changes: str | None) -> None:
    """One commit."""
    with writing(store):
        work = ChangeSet.on(store.state)
        for key, value in changes.items():
            if value is None:
                work.delete(key.encode())
            else:
                work.put(key.encode(), value.encode())
        committer(store).commit(work.as_dict(), sync=sync)


def fill(store: Store, count: int = 300, value: bytes = b"x" * 100) -> None:
    with writing(store):
        work = ChangeSet.on(store.state)
        for n in range(count):
            work.put(b"%04d" % n, value)
        committer(store).commit(work.as_dict())


@contextmanager
def writing(store: Store, timeout: float | None = 0) -> Iterator[State]:
    """One lease."""
    lease = Lease()
    try:
        yield committer(store).begin(lease, timeout)
    finally:
        lease.end()


def get(store: Store, key: str) -> bytes | None:
    return store.current().view.get(key.encode())


# -- reading -------------------------------------------------------------------------------------------------------


def test_a_commit_is_seen_by_its_own_handle_and_by_others(opened: Opener) -> None:
    writer, reader = opened(), opened(writable=False)
    for n in range(5):
        put(writer, key=str(n))
        assert get(writer, "key") == get(reader, "key") == str(n).encode()
        assert writer.current().meta.txid == reader.current().meta.txid == n + 2


def test_while_nothing_happens_a_look_is_one_small_read(volume: SimVolume, opened: Opener) -> None:
    writer, reader = opened(), opened(writable=False)
    put(writer, key="value")
    reader.current()
    sizes = []
    volume.before = lambda operation: sizes.append(operation.size)
    for _ in range(10):
        reader.current()
        writer.current()
    volume.before = None
    assert sizes == [STAMP_SIZE] * 20


def test_a_state_does_not_change(opened: Opener) -> None:
    writer = opened()
    put(writer, key="old")
    reader = Reader()
    state = writer.pin(reader)
    fill(writer)
    put(writer, key="new")
    assert state.view.get(b"key") == b"old"
    assert list(state.view.items()) == [(b"key", b"old")]
    writer.unpin(reader)


def fetch_often(store: Store, key: bytes) -> bytes | None:
    """Look a key up until it has become a row."""
    for _ in range(8):
        value = store.fetch(key)
    return value


def test_a_row_that_another_handle_changed_is_not_remembered(opened: Opener) -> None:
    writer, reader = opened(), opened(writable=False)
    fill(writer, value=b"old" * 30)
    reader.current()
    assert fetch_often(reader, b"0007") == b"old" * 30
    assert reader.rows.young[b"0007"] == b"old" * 30
    put(writer, **{"0007": "new"})
    assert get(reader, "0007") == b"new"
    assert b"0007" not in reader.rows.young


def test_a_row_read_from_an_older_state_is_not_remembered(opened: Opener) -> None:
    """A look-up that was overtaken by a commit must not put back what that took out."""

    class Overtaken(Tree):
        def find(self, key: bytes) -> bytes | None:
            value = super().find(key)
            store.state = state
            put(store, **{"0007": "new"})
            return value

    store = opened()
    fill(store, value=b"old" * 30)
    state = store.current()
    tree = state.view.tree
    for _ in range(8):
        store.state = State(state.meta, state.slot, View(Overtaken(tree.pager, tree.root, tree.depth)))
        assert store.fetch(b"0007") == b"old" * 30
        assert b"0007" not in store.rows.young
        state = store.current()


def test_large_commits_forget_all_rows(opened: Opener) -> None:
    store = opened()
    fill(store)
    fetch_often(store, b"0007")
    assert store.rows.young
    fill(store, 1500)
    assert store.rows.young == {}


def test_a_commit_that_is_not_synced_yet_is_seen_by_nobody(volume: SimVolume, opened: Opener) -> None:
    """A reader that shows it could have to take it back after a power failure."""
    writer, reader = opened(), opened(writable=False)
    put(writer, key="old")
    seen = []

    def look(operation: Operation) -> None:
        if operation.kind == "sync":
            volume.before = None
            seen.append((get(reader, "key"), opened(writable=False).state.view.get(b"key")))

    volume.before = look
    put(writer, key="new")
    assert seen == [(b"old", b"old")]
    assert get(reader, "key") == b"new"


def test_a_relaxed_commit_is_seen_at_once(volume: SimVolume, opened: Opener) -> None:
    writer, reader = opened(), opened(writable=False)
    before = volume.syncs
    put(writer, sync=False, key="new")
    assert volume.syncs == before
    assert get(reader, "key") == b"new"


def test_a_relaxed_commit_does_not_vanish_while_a_synced_one_follows(volume: SimVolume, opened: Opener) -> None:
    """It was acknowledged. To whoever looks during the sync it must not seem undone, even if it is seen for the first
    time."""
    writer, reader = opened(), opened(writable=False)
    put(writer, key="durable")
    put(writer, sync=False, key="relaxed")
    seen: list[object] = []

    def look(operation: Operation) -> None:
        if operation.kind == "sync":
            seen.append((get(reader, "key"), opened(writable=False).state.view.get(b"key")))

    volume.before = look
    put(writer, key="synced")
    volume.before = None
    assert seen
    assert set(seen) == {(b"relaxed", b"relaxed")}
    assert get(reader, "key") == b"synced"


def test_a_file_that_was_replaced_is_noticed(volume: SimVolume, opened: Opener) -> None:
    store = opened()
    put(store, key="value")
    other = encode_meta(Meta(90, 4096, b"another database", 2, steady_txid=90, steady=True)) * 2
    volume.put(PATH, other)
    with pytest.raises(CorruptionError, match="replaced by another database"):
        store.current()
    with pytest.raises(CorruptionError, match="replaced by another database"):
        committer(store).begin(Lease(), 0)


def test_metas_that_became_unreadable_are_noticed(volume: SimVolume, opened: Opener) -> None:
    store = opened()
    put(store, key="value")
    volume.put(PATH, b"\0" * META_AREA)
    with pytest.raises(error):
        store.current()
    volume.put(PATH, b"")
    with pytest.raises(CorruptionError, match="something else has written"):
        store.current()


def slots(txid: int, *, whole: bool) -> bytes:
    """The slots while a commit is made over and over: if not `whole`, what they speak of has been overwritten."""
    extents = () if whole else (Extent(3, 1, 0),)
    newest = Meta(txid, 4096, DATABASE_ID, 2, steady_txid=txid - 1, steady=whole, extents=extents)
    return encode_meta(newest) + (encode_meta(newest) if whole else bytes(META_SIZE))


def test_an_opening_that_writers_overtake_is_tried_again(volume: SimVolume, opened: Opener) -> None:
    """What they have overwritten meanwhile was not missing."""
    reads = []

    def commit(operation: Operation) -> None:
        if operation.kind == "read" and operation.offset >= META_AREA:
            reads.append(operation)
            volume.put(PATH, slots(50 + len(reads), whole=len(reads) == 3) + bytes(8192))

    volume.put(PATH, slots(50, whole=False) + bytes(8192))
    with pytest.raises(CorruptionError, match="incomplete"):
        opened()
    volume.before = commit
    store = opened()
    volume.before = None
    assert len(reads) == 3
    assert store.state.meta.txid == 53


def test_an_opening_that_is_overtaken_for_ever_gives_up(volume: SimVolume, opened: Opener) -> None:
    reads = []

    def commit(operation: Operation) -> None:
        if operation.kind == "read" and operation.offset >= META_AREA:
            reads.append(operation)
            volume.put(PATH, slots(50 + len(reads), whole=False) + bytes(8192))

    volume.put(PATH, slots(50, whole=False) + bytes(8192))
    volume.before = commit
    with pytest.raises(error, match="changes too fast"):
        opened()
    volume.before = None
    assert len(reads) == 100


def test_an_empty_file_that_another_made_a_database_with_other_pages_is_written_with_those(
    volume: SimVolume, opened: Opener
) -> None:
    volume.put(PATH, b"")
    store = opened()
    assert (store.state.meta.txid, store.pager.page_size) == (0, 4096)
    volume.put(PATH, empty_file(16384))
    fill(store)
    assert store.pager.page_size == 16384
    put(store, key="value")
    again = opened(writable=False)
    assert again.state.meta.page_size == 16384
    expected = {b"%04d" % number: b"x" * 100 for number in range(300)} | {b"key": b"value"}
    assert dict(again.state.view.items()) == expected
    assert volume.content(PATH)[META_AREA:16384] == bytes(16384 - META_AREA), "no page of another size"


# -- pins ----------------------------------------------------------------------------------------------------------


def test_pins_are_counted_and_the_oldest_of_all_handles_counts(opened: Opener) -> None:
    first, second = opened(), opened(writable=False)
    put(first, key="1")
    readers = Reader(), Reader(), Reader()
    old = second.pin(readers[0])
    put(first, key="2")
    young = first.pin(readers[1])
    again = first.pin(readers[2])
    assert young is again
    oldest = first.oldest_pin()
    assert oldest is not None
    assert oldest.txid == old.meta.txid
    assert first.oldest_txid() == second.oldest_txid() == old.meta.txid
    second.unpin(readers[0])
    first.unpin(readers[1])
    assert first.oldest_txid() == young.meta.txid
    first.unpin(readers[2])
    assert first.oldest_txid() is second.oldest_txid() is None


def test_a_pin_is_of_the_newest_commit_and_leaves_no_lock_on_the_one_before(opened: Opener) -> None:
    store, other = opened(), opened()
    put(store, a="1")
    put(other, a="2")
    put(other, a="3")
    reader = Reader()
    state = store.pin(reader)
    assert state.meta.txid == other.state.meta.txid == other.oldest_txid()
    store.unpin(reader)
    assert other.oldest_txid() is None


def test_a_pin_that_fails_leaves_no_lock(volume: SimVolume, opened: Opener) -> None:
    store, other = opened(), opened()
    put(store, a="1")
    put(other, a="2")
    whole = volume.content(PATH)
    volume.put(PATH, bytes(META_AREA) + whole[META_AREA:])
    reader = Reader()
    with pytest.raises(error):
        store.pin(reader)
    store.unpin(reader)
    volume.put(PATH, whole)
    assert other.oldest_txid() is None


def test_a_pin_that_the_file_system_refuses_is_an_error_and_no_pin(volume: SimVolume, opened: Opener) -> None:
    store, other = opened(), opened()
    put(store, key="value")
    volume.fail_at(0, Fault(None, "none"), kinds=("lock",))
    reader = Reader()
    with pytest.raises(error, match="refuses locks") as caught:
        store.pin(reader)
    assert caught.value.errno == errno.ENOLCK
    store.unpin(reader)
    assert other.oldest_txid() is None
    again = Reader()
    assert store.pin(again).meta.txid == other.oldest_txid()
    store.unpin(again)


def test_a_pinned_state_can_be_read_whatever_is_written(opened: Opener) -> None:
    writer, reader = opened(cache_size=0), opened(writable=False, cache_size=0)
    fill(writer, value=b"old" * 30)
    pinned = Reader()
    state = reader.pin(pinned)
    expected = [(b"%04d" % n, b"old" * 30) for n in range(300)]
    for n in range(20):
        fill(writer, value=b"%d" % n * 60)
        assert list(state.view.items()) == expected
    reader.unpin(pinned)


def test_a_state_that_is_not_pinned_is_overwritten_in_time(opened: Opener) -> None:
    """And that is noticed: whoever reads it then gets an error, never something else."""
    writer, reader = opened(cache_size=0), opened(writable=False, cache_size=0)
    fill(writer, value=b"old" * 30)
    state = reader.current()
    for n in range(5):
        fill(writer, value=b"%d" % n * 90)
    with pytest.raises(CorruptionError):
        list(state.view.items())


def test_an_empty_file_needs_no_pins(volume: SimVolume, opened: Opener) -> None:
    volume.put(PATH, b"")
    store = opened()
    reader = Reader()
    state = store.pin(reader)
    assert state.meta.txid == 0
    assert store.oldest_pin() is None
    store.unpin(reader)


# -- writing -------------------------------------------------------------------------------------------------------


def test_one_handle_writes_at_a_time(opened: Opener) -> None:
    first, second = opened(), opened()
    with writing(first), pytest.raises(BusyError):
        committer(second).begin(Lease(), 0)
    put(second, key="value")
    assert get(first, "key") == b"value"


def test_a_lock_can_be_kept_between_commits(opened: Opener) -> None:
    first, second = opened(), opened()
    with writing(first):
        first.writer.reserved = True
    with pytest.raises(BusyError):
        committer(second).begin(Lease(), 0)
    with writing(first):
        first.writer.reserved = False
    put(second, key="value")


def test_a_writer_begins_with_what_others_have_committed(opened: Opener) -> None:
    first, second = opened(), opened()
    put(first, a="1")
    put(second, b="2")
    put(first, c="3")
    assert dict(second.current().view.items()) == {b"a": b"1", b"b": b"2", b"c": b"3"}
    assert second.state.meta.entry_count == 3


def test_a_commit_without_changes_is_none(opened: Opener) -> None:
    store = opened()
    with writing(store) as state:
        assert committer(store).commit({}) is state


def test_a_reader_does_not_write(opened: Opener) -> None:
    store = opened(writable=False)
    with pytest.raises(ReadOnlyError):
        committer(store).begin(Lease(), 0)


def test_a_relaxed_commit_is_hardened_once(volume: SimVolume, opened: Opener) -> None:
    store = opened()
    put(store, sync=False, key="value")
    before = volume.syncs
    for _ in range(2):
        with writing(store):
            committer(store).make_durable()
    assert volume.syncs == before + 1
    metas = [decode_meta(volume.content(PATH)[at : at + META_SIZE]) for at in (0, META_SIZE)]
    assert sorted(meta.steady for meta in metas if meta is not None) == [False, True]


def test_what_was_found_unsteady_is_synced_and_marked(volume: SimVolume, opened: Opener) -> None:
    first = opened()
    put(first, sync=False, key="value")
    first.close()
    second = opened()
    before = volume.syncs
    with writing(second):
        pass
    assert volume.syncs == before + 1
    metas = [decode_meta(volume.content(PATH)[at : at + META_SIZE]) for at in (0, META_SIZE)]
    assert any(meta is not None and meta.steady and meta.txid == 2 for meta in metas)


def test_after_a_sync_that_was_lost_the_medium_decides(volume: SimVolume, opened: Opener) -> None:
    """Another handle's commit is in the page cache only, and never will be anywhere else: it was not acknowledged."""
    first = opened()
    put(first, key="old")
    volume.fail_at(0, disk_error(errno.EIO, "lost"), kinds=("sync",))
    with pytest.raises(error):
        put(first, key="new")
    first.close()
    second = opened()
    put(second, other="value")
    assert get(second, "key") == b"old"
    third = opened(writable=False)
    assert dict(third.state.view.items()) == {b"key": b"old", b"other": b"value"}


# -- ends ----------------------------------------------------------------------------------------------------------


def test_a_closed_store_raises(opened: Opener) -> None:
    store = opened()
    put(store, key="value")
    store.close()
    store.close()
    uses = (store.current, store.refresh, store.check, store.check_writable)
    for use in (*uses, lambda: store.pin(Reader()), lambda: committer(store).begin(Lease(), 0)):
        with pytest.raises(ClosedError):
            use()  # type: ignore[operator]


def test_unpinning_after_the_end_is_harmless(opened: Opener) -> None:
    store = opened()
    put(store, key="value")
    reader = Reader()
    store.pin(reader)
    store.close()
    store.unpin(reader)


def test_closing_releases_the_locks(opened: Opener) -> None:
    first, second = opened(), opened()
    put(first, key="value")
    first.pin(Reader())
    with writing(first):
        first.writer.reserved = True
    first.close()
    assert second.oldest_pin() is None
    put(second, key="again")


def test_a_poisoned_store_says_why(opened: Opener) -> None:
    store = opened()
    store.poison(OSError(errno.EIO, "the cause"))
    for use in (store.check, lambda: store.pin(Reader()), lambda: committer(store).begin(Lease(), 0)):
        with pytest.raises(error, match="the cause"):
            use()  # type: ignore[operator]


def test_opening_reads_no_more_than_it_must(volume: SimVolume, opened: Opener) -> None:
    """Whatever the size of the file."""
    writer = opened()
    fill(writer, 20_000)
    writer.close()
    reads: list[int] = []
    volume.before = lambda operation: reads.append(operation.size) if operation.kind == "read" else None
    opened(writable=False)
    volume.before = None
    assert len(reads) <= 3
    assert sum(reads) <= 3 * META_AREA


def test_a_store_with_other_pages_than_asked_for_takes_those_of_the_file(volume: SimVolume, opened: Opener) -> None:
    volume.put(PATH, empty_file(16384))
    store = opened()
    assert store.pager.page_size == 16384
    fill(store)
    assert store.state.meta.page_size == 16384
    assert store.state.meta.database_id == DATABASE_ID


def test_two_writer_locks_of_the_same_file_know_each_other(opened: Opener) -> None:
    first, second = opened(), opened()
    assert first.file == second.file
    with writing(first), pytest.raises(BusyError, match="this thread already writes"):
        committer(second).begin(Lease(), None)
    assert not WriterLock(first.file).kept


@pytest.mark.parametrize("closing", [False, True])
def test_what_a_handler_raises_in_a_finalizer_is_raised_by_the_next_use(
    opened: Opener, monkeypatch: pytest.MonkeyPatch, *, closing: bool
) -> None:
    """There it has no caller, so Python would print it and go on."""
    store = opened()
    reader = Reader()
    store.pin(reader)

    def interrupted() -> None:
        monkeypatch.undo()
        if closing:
            store.close()
        raise SystemExit

    monkeypatch.setattr(store, "_released", interrupted)
    store.unpin_dropped(reader)
    with pytest.raises(SystemExit):
        store.check()
    if closing:
        with pytest.raises(ClosedError):
            store.check()
    else:
        store.check()
        put(store, k="v")
