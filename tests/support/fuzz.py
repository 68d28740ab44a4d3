"""Coverage-guided fuzzing of files with right checksums, with atheris.

    python tests/support/fuzz.py -max_total_time=600 [CORPUS]       # libFuzzer's options

What the fuzzer draws are changes of a sound file: which run, where in it, and what stands there instead. All checksums
are made right again afterwards, up to the meta pages, so that what it draws gets past them. Then the file is read,
checked and written to, as in `test_damage`: the answer is some content or an error of ours, in bounded work.
"""

from __future__ import annotations

import os
import sys

import atheris

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path[:0] = [HERE, os.path.dirname(HERE), os.path.dirname(os.path.dirname(HERE))]

with atheris.instrument_imports(include=["durabledbm"]):
    import damage
    from test_damage import assert_bounded

    from durabledbm._engine.meta import META_SIZE


def drawn(data: bytes) -> bytes:
    """The file that the fuzzer means."""
    image = damage.images()[0]
    draw = atheris.FuzzedDataProvider(data)
    for _ in range(draw.ConsumeIntInRange(1, 6)):
        runs = list(damage.runs(image))
        number = draw.ConsumeIntInRange(0, len(runs))
        if number == len(runs):
            image = damage.with_metas(image, lambda slot, runs=runs: changed(slot, draw, [16, META_SIZE - 12], runs))
        else:
            page_id, run = runs[number]
            image = damage.forge(image, page_id, changed(run, draw, [0, len(run) - 4], runs))
    return image


def changed(page: bytes, draw: atheris.FuzzedDataProvider, bounds: list[int], runs: list[tuple[int, bytes]]) -> bytes:
    """Up to four places of the page with something else: bytes, a number, or what some other page says there."""
    body = bytearray(page)
    for _ in range(draw.ConsumeIntInRange(1, 4)):
        near = draw.ConsumeBool()
        at = draw.ConsumeIntInRange(bounds[0], min(bounds[1], bounds[0] + 150) if near else bounds[1])
        kind = draw.ConsumeIntInRange(0, 3)
        if kind == 0:
            new = draw.ConsumeBytes(draw.ConsumeIntInRange(1, 16))
        elif kind == 1:
            new = draw.ConsumeIntInRange(0, 2**64 - 1).to_bytes(8, "little")[: draw.PickValueInList([1, 2, 4, 8])]
        elif kind == 2:
            new = draw.PickValueInList(runs)[0].to_bytes(8, "little")
        else:
            new = draw.PickValueInList(runs)[1][at : at + 32]
        body[at : at + len(new)] = new
    return bytes(body[: len(page)])


def one_input(data: bytes) -> None:
    assert_bounded(drawn(data), "drawn")


if __name__ == "__main__":
    atheris.Setup(sys.argv, one_input)
    atheris.Fuzz()
