"""Progress: on a terminal a bar or a line with rate and time left, in a pipe nothing."""

from __future__ import annotations

import io
import sys
import time
from typing import Any

import pytest

from durabledbm.cli import progress
from durabledbm.cli.progress import duration, quantity, shown


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "_DELAY", 0.0)
    monkeypatch.setattr(progress, "_INTERVAL", 0.0)


@pytest.fixture
def without_tqdm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tqdm", None)


def lines_of(stream: io.StringIO) -> list[str]:
    return [line.rstrip() for line in stream.getvalue().split("\r")]


def test_in_a_pipe_nothing_is_shown() -> None:
    stream = io.StringIO()
    with shown("work", stream=stream) as meter:
        meter(1, 2)
    assert stream.getvalue() == ""


@pytest.mark.usefixtures("without_tqdm")
def test_a_plain_line_tells_part_rate_and_time_left_and_disappears() -> None:
    stream = Terminal()
    with shown("check", "pages", stream=stream) as meter:
        time.sleep(0.02)  # some clocks tell no less
        meter(250, 1000)
        meter(1000, 1000)
    _, first, second, *last = lines_of(stream)
    assert first.startswith("check:  25 %, 250 of 1,000 pages, ")
    assert first.endswith(" left")
    assert "pages/s" in first
    assert second.startswith("check: 100 %")
    assert "left" not in second
    assert last == ["", ""]


@pytest.mark.usefixtures("without_tqdm")
def test_a_shorter_line_leaves_nothing_of_a_longer_one_and_the_end_nothing_at_all() -> None:
    """By blanks: no code is needed that a console might show instead."""
    stream = Terminal()
    with shown("check", "pages", stream=stream) as meter:
        time.sleep(0.02)  # some clocks tell no less
        meter(250, 1000)
        meter(1000, 1000)
    _, first, second, last, end = stream.getvalue().split("\r")
    assert len(second) == len(first) > len(second.rstrip())
    assert (last, end) == (" " * len(second.rstrip()), "")
    assert "\x1b" not in stream.getvalue()


@pytest.mark.usefixtures("without_tqdm")
def test_without_a_total_the_line_tells_what_is_done() -> None:
    stream = Terminal()
    with shown("load", "bytes", stream=stream) as meter:
        meter(3 * 2**20, None)
    assert lines_of(stream)[1].startswith("load: 3 MiB, ")


@pytest.mark.usefixtures("without_tqdm")
def test_the_line_is_no_wider_than_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "20")
    stream = Terminal()
    with shown("a long name for it", stream=stream) as meter:
        meter(1, 1000)
    assert all(len(line) < 20 for line in lines_of(stream))


@pytest.mark.usefixtures("without_tqdm")
def test_short_work_shows_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "_DELAY", 1000.0)
    stream = Terminal()
    with shown("check", stream=stream) as meter:
        meter(1, 2)
    assert stream.getvalue() == ""


@pytest.mark.usefixtures("without_tqdm")
def test_the_line_disappears_when_the_work_fails() -> None:
    stream = Terminal()

    def work() -> None:
        with shown("check", stream=stream) as meter:
            meter(1, 2)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        work()
    assert lines_of(stream)[-1] == ""


@pytest.mark.parametrize("unit", ["pages", "bytes"])
def test_tqdm_draws_the_bar_where_it_is_installed(unit: str) -> None:
    pytest.importorskip("tqdm")
    stream = Terminal()
    with shown("check", unit, stream=stream) as meter:
        for done in range(0, 5000, 500):
            meter(done, 5000)
    text = stream.getvalue()
    assert "check:" in text
    assert "%|" in text


def test_tqdm_is_told_the_label_the_unit_and_how_much_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    bars: list[Any] = []

    class Bar:
        def __init__(self, **options: Any) -> None:
            self.options, self.n, self.total, self.closed = options, 0, None, False
            bars.append(self)

        def update(self, more: int) -> None:
            self.n += more

        def close(self) -> None:
            self.closed = True

    monkeypatch.setitem(sys.modules, "tqdm", type(sys)("tqdm"))
    monkeypatch.setattr(sys.modules["tqdm"], "tqdm", Bar, raising=False)
    with shown("backup", "entries", stream=Terminal()) as meter:
        meter(3, 10)
        meter(7, 12)
        (bar,) = bars
        assert (bar.n, bar.total, bar.closed) == (7, 12, False)
    assert bar.closed
    assert (bar.options["desc"], bar.options["unit"], bar.options["leave"]) == ("backup", " entries", False)


@pytest.mark.parametrize(
    ("count", "unit", "text"),
    [
        (1234, "pages", "1,234 pages"),
        (0, "bytes", "0 B"),
        (1023, "bytes", "1023 B"),
        (4096, "bytes", "4 KiB"),
        (1.5 * 2**20, "bytes", "1.5 MiB"),
        (2**40 * 5000, "bytes", "5000 TiB"),
    ],
)
def test_quantities_are_for_people(count: float, unit: str, text: str) -> None:
    assert quantity(count, unit) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (3.5e-4, "350 µs"),
        (0.012, "12 ms"),
        (4.52, "4.5 s"),
        (125, "2 min 5 s"),
        (12000, "3 h 20 min"),
        (270000, "3 d 3 h"),
    ],
)
def test_times_are_for_people(seconds: float, text: str) -> None:
    assert duration(seconds) == text
