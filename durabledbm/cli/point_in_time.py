"""Parsing a point in time as people write it: the number of a commit, or a date and time."""

from __future__ import annotations

import re
from datetime import datetime
from typing import TypedDict

__all__ = ["Until", "parse_until"]

_FRACTION = re.compile(r"\.[0-9]+")


class Until(TypedDict, total=False):
    """The commit or time to stop at."""

    until_txid: int
    until_time_ns: int


def parse_until(text: str) -> Until:
    """TXID, a number, or TIME, a date and time as in ISO 8601. Raises `ValueError`.

    A time without a zone is local time; "2026-05-01" is that day's first moment.
    """
    if text.isdecimal():
        return {"until_txid": int(text)}
    plain = text[:-1] + "+00:00" if text.endswith(("Z", "z")) else text
    plain = _FRACTION.sub(lambda found: found[0][:7].ljust(7, "0"), plain)  # Python 3.10 wants all six digits
    try:
        moment = datetime.fromisoformat(plain)
    except ValueError:
        raise ValueError(f"neither a commit's number nor a date and time: {text!r}") from None
    return {"until_time_ns": round(moment.timestamp() * 1_000_000) * 1000}
