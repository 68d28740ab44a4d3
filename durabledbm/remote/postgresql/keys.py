"""Keys in a PostgreSQL table: any length, in the order of bytes, under a unique index.

An entry of a PostgreSQL index has at most some 2,700 bytes, and a key may be longer. So a key has two columns: `key`
is all of it, or its first `KEY_MAX` bytes, `rest` what follows. The index is over `key` and `digest`, which stands for
`rest`: nothing for nothing, else its SHA-256. Rows in the order of `(key, rest)` are in the order of the whole keys,
because `rest` is empty unless `key` is full. For nearly everybody `key` is the key.
"""

from __future__ import annotations

from hashlib import sha256

__all__ = ["KEY_MAX", "bound", "split"]

KEY_MAX = 2000
"""Bytes in the column `key`."""


def split(key: bytes) -> tuple[bytes, bytes, bytes]:
    """The columns `key`, `rest` and `digest` of a key."""
    if len(key) <= KEY_MAX:
        return key, b"", b""
    rest = key[KEY_MAX:]
    return key[:KEY_MAX], rest, sha256(rest).digest()


def bound(key: bytes) -> tuple[bytes, bytes]:
    """The columns `key` and `rest`, to compare with: `(key, rest) >= bound(k)` are the keys from `k` on."""
    return key[:KEY_MAX], key[KEY_MAX:]
