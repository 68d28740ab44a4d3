"""inspect: every page of a file is on the map, as what it is, and damage is on it too; the pictures say the same."""

from __future__ import annotations

import json
import os
import random
import re
import xml.etree.ElementTree as ET
from collections import Counter
from pathlib import Path

import pytest
from damage import claiming, forge, images, runs
from systems import only_posix

import durabledbm
from durabledbm._engine.page import HEADER
from durabledbm.cli.app import main
from durabledbm.cli.pictures.html import html
from durabledbm.cli.pictures.layout import cells_of, totals_of
from durabledbm.cli.pictures.palette import KINDS as LOOKS
from durabledbm.cli.pictures.svg import svg
from durabledbm.cli.pictures.terminal import draw
from durabledbm.maintenance.inspect import KINDS, FileMap, inspect

IN_TREE = ("leaf", "branch", "overflow")


def filled(path: str, *, page_size: int | None = None, seed: int = 1, count: int = 800) -> None:
    """A file of some hundred pages, with large values, and with pages that were freed and used again."""
    rng = random.Random(seed)
    with durabledbm.open(path, "n", page_size=page_size) as db:
        for _ in range(3):
            db.update(
                {
                    f"key{i:04}": rng.randbytes(rng.choice([0, 20, 200, 800, 3000, 30_000 if i % 40 == 0 else 5]))
                    for i in range(count)
                }
            )
            with db.transaction():
                for i in range(0, count, 3):
                    del db[f"key{i:04}"]


@pytest.fixture
def path(db_path: str) -> str:
    filled(db_path)
    return db_path


def pages_of(picture: FileMap) -> Counter[str]:
    """Pages by kind, after checking that every page is on the map exactly once."""
    at = 0
    counts: Counter[str] = Counter()
    for run in picture.runs:
        assert run.page_id == at
        assert run.page_count > 0
        assert run.kind in KINDS
        counts[run.kind] += run.page_count
        at += run.page_count
    assert at == picture.page_count
    return counts


# -- sound files -------------------------------------------------------------------------------------


@pytest.mark.parametrize("page_size", [4096, 8192, 16384, 65536])
def test_every_page_is_on_the_map_as_what_it_is(db_path: str, page_size: int) -> None:
    filled(db_path, page_size=page_size)
    picture = inspect(db_path)
    with durabledbm.open(db_path) as db:
        stats = db.stats()
    assert pages_of(picture) == {
        kind: count
        for kind, count in {
            "meta": 2 if page_size == 4096 else 1,
            "leaf": stats.leaf_pages, "branch": stats.branch_pages, "overflow": stats.overflow_pages,
            "space": stats.space_pages, "free": stats.free_pages, "pending": stats.pending_pages,
        }.items()
        if count
    }  # fmt: skip
    assert picture.problems == []
    assert (picture.entry_count, picture.txid, picture.depth) == (stats.entries, stats.txid, stats.depth)
    assert picture.file_size == os.path.getsize(db_path)


def test_leaves_tell_their_entries_and_every_node_its_parent(path: str) -> None:
    picture = inspect(path)
    with durabledbm.open(path) as db:
        keys = set(db)
    by_page = {run.page_id: run for run in picture.runs}
    leaves = [run for run in picture.runs if run.kind == "leaf"]
    assert sum(run.entries for run in leaves) == picture.entry_count
    assert all(run.first_key in keys for run in leaves)
    for run in picture.runs:
        assert 0 <= run.used <= run.page_count * picture.page_size
        assert run.txid <= picture.txid
        if run.kind == "overflow":
            assert by_page[run.parent].kind == "leaf"
            assert run.first_key in keys
        elif run.kind in ("leaf", "branch") and run.parent:
            assert by_page[run.parent].kind == "branch"
    assert sum(run.kind in ("leaf", "branch") and not run.parent for run in picture.runs) == 1, "one root"


def test_pages_that_an_open_snapshot_reads_are_pinned(path: str) -> None:
    with durabledbm.open(path) as reader, reader.snapshot() as snapshot, durabledbm.open(path, "w") as db:
        for _ in range(3):
            db.update({f"key{i:04}": "new" * 20 for i in range(300)})
        pinned = inspect(path)
        assert pinned.oldest_snapshot == snapshot.txid
        assert pages_of(pinned)["pinned"] > 0
    released = inspect(path)
    assert released.oldest_snapshot is None
    assert pages_of(released)["pinned"] == 0


def test_looking_changes_nothing_and_keeps_nothing(path: str) -> None:
    before = Path(path).read_bytes()
    inspect(path, key=b"key0001")
    assert Path(path).read_bytes() == before


def test_a_file_of_0_bytes_has_no_pages(db_path: str) -> None:
    Path(db_path).touch()
    assert inspect(db_path).page_count == 0
    assert os.path.getsize(db_path) == 0


def test_an_empty_database_is_its_meta_pages(db_path: str) -> None:
    durabledbm.open(db_path, "c").close()
    assert pages_of(inspect(db_path)) == {"meta": 2}


def test_a_file_that_is_not_ours_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("text\n" * 5000)
    with pytest.raises(durabledbm.error, match="not a durabledbm database"):
        inspect(tmp_path / "text")
    with pytest.raises(durabledbm.error, match=r"(?i)no such file|file not found|cannot find"):
        inspect(tmp_path / "nothing")
    with pytest.raises(durabledbm.error, match="not a regular file"):
        inspect(tmp_path)


def test_progress_is_told_in_pages(path: str) -> None:
    seen: list[tuple[int, int | None]] = []
    picture = inspect(path, progress=lambda done, total: seen.append((done, total)))
    assert seen == sorted(seen)
    assert {total for _, total in seen} == {picture.page_count}


# -- the way to a key --------------------------------------------------------------------------------


def test_the_way_to_a_key_leads_from_the_meta_page_to_its_value(path: str) -> None:
    with durabledbm.open(path) as db:
        entries = dict(db.items())
    kinds = {run.page_id: run.kind for run in inspect(path).runs}
    for key, value in [*list(entries.items())[::50], (b"key0040", entries[b"key0040"])]:
        picture = inspect(path, key=key)
        assert picture.found
        way = [kinds[step.page_id] for step in picture.steps]
        assert way == ["meta", *["branch"] * (picture.depth - 1), "leaf", *["overflow"] * (way[-1] == "overflow")]
        assert f"{len(value):,} bytes" in picture.steps[-1].what


def test_the_way_to_a_key_that_is_not_there_ends_where_it_would_be(path: str) -> None:
    picture = inspect(path, key=b"key0001x")
    assert not picture.found
    assert "not among its" in picture.steps[-1].what


def test_a_key_among_the_newest_changes_is_in_the_meta_page(path: str) -> None:
    with durabledbm.open(path, "w") as db:
        db["fresh"] = "value"
        del db["key0001"]
    fresh, gone = inspect(path, key=b"fresh"), inspect(path, key=b"key0001")
    assert (fresh.found, gone.found) == (True, False)
    assert len(fresh.steps) == len(gone.steps) == 1
    assert "5 bytes" in fresh.steps[0].what
    assert "deleted" in gone.steps[0].what


def test_in_an_empty_tree_no_key_is_found(db_path: str) -> None:
    durabledbm.open(db_path, "c").close()
    picture = inspect(db_path, key=b"x")
    assert (picture.found, len(picture.steps)) == (False, 1)


# -- damage ------------------------------------------------------------------------------------------


def flip(path: str, offset: int) -> None:
    with open(path, "r+b") as file:
        file.seek(offset)
        byte = file.read(1)
        file.seek(offset)
        file.write(bytes([byte[0] ^ 0x20]))


@pytest.mark.leaves_damage
def test_a_damaged_page_of_any_kind_is_shown_as_damaged(path: str) -> None:
    rng = random.Random(3)
    sound = inspect(path)
    for kind in ("meta", "leaf", "branch", "overflow", "space"):
        run = rng.choice([run for run in sound.runs if run.kind == kind])
        offset = run.page_id * sound.page_size + rng.randrange(run.page_count * sound.page_size)
        flip(path, offset)
        picture = inspect(path)
        counts = pages_of(picture)
        assert counts["damaged"] >= 1
        assert next(other.kind for other in picture.runs if other.page_id == run.page_id) == "damaged"
        assert picture.problems
        flip(path, offset)
    assert inspect(path).problems == []


@pytest.mark.leaves_damage
def test_leaves_that_a_damaged_branch_has_cut_off_are_found(path: str) -> None:
    sound = inspect(path)
    leaves = sum(run.kind == "leaf" for run in sound.runs)
    root = next(run for run in sound.runs if run.kind == "branch" and not run.parent)
    flip(path, root.page_id * sound.page_size + 50)
    picture = inspect(path)
    assert pages_of(picture)["unreachable"] >= leaves
    cut_off = [run for run in picture.runs if run.note.startswith("an intact leaf")]
    assert len(cut_off) == leaves
    assert sum(run.entries for run in cut_off) == sound.entry_count
    assert any(f"{leaves} intact leaves with {sound.entry_count} entries" in problem for problem in picture.problems)


@pytest.mark.leaves_damage
@pytest.mark.parametrize("page_size", [4096, 16384])
def test_without_usable_meta_pages_every_page_speaks_for_itself(db_path: str, page_size: int) -> None:
    filled(db_path, page_size=page_size)
    sound = inspect(db_path)
    flip(db_path, 100)
    flip(db_path, 4096 + 100)
    picture = inspect(db_path)
    assert picture.page_size == page_size
    counts = pages_of(picture)
    assert set(counts) == {"damaged", "unreachable"}
    intact = sum(run.page_count for run in picture.runs if run.note.startswith("an intact"))
    assert intact >= sum(run.page_count for run in sound.runs if run.kind in IN_TREE)


@pytest.mark.leaves_damage
def test_pages_that_the_file_has_lost_are_damage(path: str) -> None:
    sound = inspect(path)
    os.truncate(path, sound.file_size // 2 + 77)
    picture = inspect(path)
    assert picture.page_count == sound.page_count
    assert pages_of(picture)["damaged"] > 0
    assert any("the file ends at page" in problem for problem in picture.problems)


@pytest.mark.leaves_damage
@pytest.mark.parametrize("seed", range(40))
def test_whatever_the_damage_the_map_is_whole_and_nothing_is_raised(db_path: str, seed: int) -> None:
    rng = random.Random(seed)
    filled(db_path, seed=seed, count=60)
    data = bytearray(Path(db_path).read_bytes())
    for _ in range(rng.choice([1, 3, 10, 100])):
        at = rng.randrange(8192 if rng.random() < 0.2 else len(data))
        data[at : at + rng.choice([1, 4, 512, 4096])] = rng.randbytes(rng.choice([0, 1, 4, 512, 4096]))
    Path(db_path).write_bytes(data)
    if not data.startswith(b"\x8bdurabledbm") and data[4096:4107] != b"\x8bdurabledbm":
        with pytest.raises(durabledbm.error, match="not a durabledbm database"):
            inspect(db_path)
        return
    picture = inspect(db_path, key=b"key0007")
    pages_of(picture)
    for mode in ("kind", "fill", "age"):
        assert draw(picture, mode=mode)
        ET.fromstring(svg(picture, mode=mode))
        html(picture, mode=mode)


def drawn(picture: FileMap) -> None:
    """Every picture of a damaged file can be drawn."""
    pages_of(picture)
    draw(picture)
    ET.fromstring(svg(picture))
    html(picture)


@pytest.mark.leaves_damage
@pytest.mark.parametrize(
    "claims",
    [
        {"depth": 5000},
        {"depth": 3},
        {"page_count": 2**62},
        {"page_count": 10**7},
        {"page_count": 17},
        {"page_count": 3},
        {"root": b"\xff" * 16},
        {"space": b"\xff" * 16},
        {"space": bytes(16)},
    ],
    ids=str,
)
def test_whatever_the_meta_pages_claim_the_map_is_whole(db_path: str, claims: dict[str, object]) -> None:
    Path(db_path).write_bytes(claiming(images()[0], **claims))
    picture = inspect(db_path, key=b"key 001")
    drawn(picture)
    assert picture.problems


@pytest.mark.leaves_damage
@pytest.mark.parametrize("seed", range(40))
def test_whatever_pages_with_right_checksums_say_the_map_is_whole(db_path: str, seed: int) -> None:
    rng = random.Random(seed)
    image = images()[0]
    for page_id, run in list(runs(image)):
        if rng.random() < 0.3:
            body = bytearray(run)
            for _ in range(rng.choice([1, 1, 4])):
                at = rng.choice(
                    [rng.randrange(HEADER.size), rng.randrange(HEADER.size, 200), rng.randrange(len(run) - 4)]
                )
                body[at] = rng.choice([0, 1, 255, rng.randrange(256)])
            try:
                image = forge(image, page_id, bytes(body))
            except KeyError:
                continue  # an earlier change has made it something else
    Path(db_path).write_bytes(image)
    drawn(inspect(db_path, key=b"key 001"))


@pytest.mark.leaves_damage
def test_a_page_that_is_used_twice_is_shown_once(db_path: str) -> None:
    image = images()[0]
    Path(db_path).write_bytes(image)
    root = next(run for run in inspect(db_path).runs if run.kind == "branch")
    run = dict(runs(image))[root.page_id]
    first, second = run[HEADER.size : HEADER.size + 16], run[HEADER.size + 16 : HEADER.size + 32]
    Path(db_path).write_bytes(forge(image, root.page_id, run.replace(second, first)))
    picture = inspect(db_path)
    drawn(picture)
    assert any("in use twice" in problem for problem in picture.problems)


@pytest.mark.leaves_damage
@pytest.mark.parametrize("size", [1, 100, 4095, 4096, 5000, 8191, 8192, 12_000])
def test_a_file_of_any_length_has_a_map(path: str, size: int) -> None:
    os.truncate(path, size)
    if size < 16:
        with pytest.raises(durabledbm.error):
            inspect(path)
    else:
        drawn(inspect(path, key=b"key0001"))


# -- cells -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("limit", [1, 10, 100, 10_000])
def test_cells_cover_every_page_and_never_hide_damage(path: str, limit: int) -> None:
    picture = inspect(path)
    at = len(picture.runs) // 2
    hurt = picture.runs[at]._replace(kind="damaged")
    picture = picture._replace(runs=[*picture.runs[:at], hurt, *picture.runs[at + 1 :]])
    unit, cells = cells_of(picture, limit)
    assert len(cells) <= limit
    assert sum(cell.page_count for cell in cells) == picture.page_count
    assert [cell.page_id for cell in cells] == list(range(0, picture.page_count, unit))
    assert all(0 <= cell.fill <= 1 for cell in cells)
    holding = next(cell for cell in cells if cell.page_id <= hurt.page_id < cell.page_id + cell.page_count)
    assert holding.kind == "damaged"


def test_every_kind_has_a_look_and_every_letter_is_another() -> None:
    assert tuple(LOOKS) == KINDS
    assert len({look.letter for look in LOOKS.values()}) == len(KINDS)
    assert len({look.colour for look in LOOKS.values()}) == len(KINDS)


# -- the terminal ------------------------------------------------------------------------------------

ROW = re.compile(r"^ *([\d,]+) (\S+)$")


def rows_of(lines: list[str]) -> list[tuple[int, str]]:
    found = (ROW.match(line) for line in lines)
    return [(int(match[1].replace(",", "")), match[2]) for match in found if match]


def test_without_colours_the_map_is_a_letter_for_each_page(path: str) -> None:
    picture = inspect(path)
    rows = rows_of(draw(picture, colour=False, rows=None))
    assert Counter("".join(row for _, row in rows)) == {
        LOOKS[kind].letter: total.page_count for kind, total in totals_of(picture).items()
    }
    at = 0
    for start, row in rows:
        assert start == at
        at += len(row)


@pytest.mark.parametrize("width", [20, 40, 80, 131])
@pytest.mark.parametrize("colour", [False, True])
def test_the_map_is_as_wide_as_the_terminal_and_no_wider(path: str, width: int, colour: bool) -> None:
    lines = draw(inspect(path, key=b"key0001"), width=width, colour=colour)
    plain = [re.sub(r"\x1b\[[0-9;]*m", "", line) for line in lines]
    rows = [line for line in plain if re.match(r"^ *[\d,]+ \S+$", line)]
    assert rows
    assert max(map(len, rows)) <= width
    assert (max(map(len, rows)) > width - 24) or width < 40
    assert colour == any("\x1b[" in line for line in lines)


def test_a_terminal_without_unicode_gets_letters(path: str) -> None:
    for colour in (False, True):
        "\n".join(draw(inspect(path, key=b"key0001"), colour=colour, encoding="ascii")).encode("ascii")


def test_fill_and_age_are_digits_where_there_are_no_colours(path: str) -> None:
    for mode in ("fill", "age"):
        rows = rows_of(draw(inspect(path), colour=False, rows=None, mode=mode))
        assert set("".join(row for _, row in rows)) <= set("0123456789.-+")


def test_a_part_of_the_file_can_be_shown(path: str) -> None:
    rows = rows_of(draw(inspect(path), colour=False, start=10, stop=30))
    whole = "".join(row for _, row in rows_of(draw(inspect(path), colour=False, rows=None)))
    assert rows[0][0] == 10
    assert "".join(row for _, row in rows) == whole[10:30]


def test_pages_on_the_way_to_the_key_are_marked(path: str) -> None:
    picture = inspect(path, key=b"key0001")
    marks = "".join(row for _, row in rows_of(draw(picture, colour=False, rows=None)))
    assert [at for at, letter in enumerate(marks) if letter == "@"] == sorted(step.page_id for step in picture.steps)


# -- SVG and HTML ------------------------------------------------------------------------------------

SVG = "{http://www.w3.org/2000/svg}"
HOSTILE = [
    b"</script><script>alert(1)</script>",
    b"<img src=x onerror=alert(1)>",
    b"\x1b[31m\x00\xff",
    b"]]>&amp;\"'",
    "\u2028\ud7ff".encode(),
]


@pytest.fixture
def hostile(db_path: str) -> str:
    """A file whose keys, and whose name, would be markup if they were taken for it."""
    path = os.path.join(os.path.dirname(db_path), "<b>&\"'.db")
    with durabledbm.open(path, "c") as db:
        for key in HOSTILE:
            db[key] = b"x" * 10_000
        db.update({b"%d" % i: b"x" * 50 for i in range(200)})
    return path


def test_the_svg_is_an_image_with_a_text_for_each_page(path: str) -> None:
    picture = inspect(path, key=b"key0001")
    root = ET.fromstring(svg(picture))
    titles = [title.text or "" for title in root.iter(f"{SVG}title")]
    assert titles[0] == path
    assert len(titles) == 1 + picture.page_count
    leaf = next(run for run in picture.runs if run.kind == "leaf")
    assert any(
        title.startswith(f"page {leaf.page_id:,}: leaf\n") and f"{leaf.entries} entries" in title for title in titles
    )
    assert not list(root.iter(f"{SVG}script"))


@only_posix("no name has such characters there")
def test_pictures_take_nothing_of_the_file_for_markup(hostile: str) -> None:
    picture = inspect(hostile, key=HOSTILE[0])
    root = ET.fromstring(svg(picture))
    assert {element.tag for element in root.iter()} <= {
        f"{SVG}{tag}" for tag in ("svg", "title", "style", "rect", "text", "path", "g")
    }
    page = html(picture)
    assert page.count("<script") == 2
    assert "<img" not in page
    assert "<b>" not in page
    data = json.loads(page.split('type="application/json">')[1].split("</script>")[0])
    assert any("alert(1)" in box[7] for box in data["boxes"])
    assert not any("\x1b" in line for line in draw(picture, colour=False))


def test_the_html_needs_nothing_from_elsewhere(path: str) -> None:
    page = html(inspect(path))
    assert not re.search(r"https?://|@import|<link|src=", page)


def test_the_html_holds_every_page(path: str) -> None:
    picture = inspect(path, key=b"key0001")
    data = json.loads(html(picture).split('type="application/json">')[1].split("</script>")[0])
    assert [(box[0], box[1], data["kinds"][box[2]][0]) for box in data["boxes"]] == [run[:3] for run in picture.runs]
    assert sum(kind[4] for kind in data["kinds"]) == picture.page_count
    assert [step[0] for step in data["steps"]] == [step.page_id for step in picture.steps]


def test_a_large_file_has_several_pages_to_a_square(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("durabledbm.cli.pictures.html._CELLS_MAX", 50)
    monkeypatch.setattr("durabledbm.cli.pictures.svg._CELLS_MAX", 50)
    picture = inspect(path)
    data = json.loads(html(picture).split('type="application/json">')[1].split("</script>")[0])
    assert data["unit"] > 1
    assert sum(box[1] for box in data["boxes"]) == picture.page_count
    assert f"each square is {data['unit']} pages" in svg(picture)


# -- the command -------------------------------------------------------------------------------------


def test_the_command_draws_saves_and_answers(
    path: str, tmp_path: Path, capsysbinary: pytest.CaptureFixture[bytes]
) -> None:
    assert main(["inspect", path, "--key", "key0001", "--color", "never"]) == 0
    shown = capsysbinary.readouterr().out.decode()
    assert "leaf: entry" in shown
    assert main(["inspect", path, "--key", "nope", "--color", "never"]) == 1
    one, two = str(tmp_path / "map.svg"), str(tmp_path / "map.html")
    assert main(["inspect", path, "--svg", one, "--html", two, "--by", "age"]) == 0
    ET.parse(one)
    assert '"mode":"age"' in Path(two).read_text("utf-8")
    assert main(["inspect", path, "--pages", "999999-"]) == 2
    assert main(["inspect", path, "--pages", "5-3"]) == 2
    assert main(["inspect", path, "--pages", "3-5", "--by", "fill", "--full"]) == 0


@pytest.mark.leaves_damage
def test_the_command_shows_damage(path: str, capsysbinary: pytest.CaptureFixture[bytes]) -> None:
    leaf = next(run for run in inspect(path).runs if run.kind == "leaf")
    flip(path, leaf.page_id * 4096 + 99)
    for colour in ("never", "always"):
        assert main(["inspect", path, "--color", colour]) == 1
        shown, said = (stream.decode() for stream in capsysbinary.readouterr())
        assert f"{path}: the file is damaged" in said
        assert f"page {leaf.page_id}: leaf: the checksum does not match" in shown
    assert "✕" in shown
    key = os.fsdecode(leaf.first_key)
    assert main(["inspect", path, "--color", "never", "--key", key]) == 1
    assert "the way to the key is damaged" in capsysbinary.readouterr().err.decode()
