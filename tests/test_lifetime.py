"""Objects that are listed for as long as they live."""

from __future__ import annotations

import gc

from durabledbm.lifetime import Living


class Thing:
    """Something that can be referred to weakly."""


def test_what_lives_is_listed_and_what_does_not_is_not() -> None:
    living: Living[Thing] = Living()
    first, second = Thing(), Thing()
    living.add(first)
    living.add(second)
    assert living.all() == [first, second]
    del first
    assert living.all() == [second]
    living.discard(second)
    assert living.all() == []
    living.discard(second)


def test_a_thing_that_was_discarded_and_listed_again_is_listed_once() -> None:
    living: Living[Thing] = Living()
    thing = Thing()
    for _ in range(3):
        living.add(thing)
        living.discard(thing)
    living.add(thing)
    living.add(thing)
    assert living.all() == [thing]


def test_nothing_is_left_of_what_is_gone_and_nothing_is_held() -> None:
    gc.disable()
    try:
        living: Living[Thing] = Living()
        for _ in range(100):
            living.add(Thing())
        assert living._references == {}
    finally:
        gc.enable()


def test_a_thing_may_outlive_its_list() -> None:
    living: Living[Thing] = Living()
    thing = Thing()
    living.add(thing)
    del living
    gc.collect()
    del thing
