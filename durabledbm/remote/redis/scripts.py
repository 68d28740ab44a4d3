"""How a database is stored on a Redis server, and the scripts that read and write it.

Each table has a hash with its entries, and a sorted set of their keys in which all scores are equal, so that Redis
keeps them in byte order:

    {app}:entries  {app}:order                  of the main table of the database `app`
    {app}/users:entries  {app}/users:order      of its table `users`
    {app}:tables                                a set of the names of the tables

All names have the same hash tag, so in a cluster they are on one node. An operation of more than one command is a
script, which Redis runs atomically.

*Readers.* Redis has no snapshots. So a longer read registers as a reader, and a writer keeps for each reader what it
has not read yet: before a key changes for the first time since then, its old value is copied to a hash of the reader,
and the key is recorded in a sorted set. A reader finds changed keys there, and all others in the table. Writing costs
more only while there are readers, and only for the first change of a key. The record of changes also tells a
transaction, which is a reader, whether it may commit.

    {app}:readers                               a sorted set: reader -> when it expires, in seconds since 1970
    {app}:touched:ID                            a set of the tables in which something changed since ID began
    {app}:old:ID  {app}:changed:ID              of the main table: old values, changed keys; {app}/users:... likewise

A reader that has done nothing for `IDLE` seconds expires: its process may have died.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Mapping

__all__ = [
    "APPLY", "CLEAR", "COMMIT", "CONFLICT", "COUNT", "DROP", "ENTER", "GONE", "IDLE", "LEAVE", "LOOK", "PAGE", "POP",
    "POP_END", "SET_DEFAULT", "packed_changes", "packed_strings",
]  # fmt: skip

IDLE = 600
"""Seconds after which a reader that does nothing is given up."""

GONE = "GONE"
"""What the error begins with that a reader gets who was given up."""

CONFLICT = b"CONFLICT"
"""What `COMMIT` returns if others have changed what the transaction has read."""

_ABSENT = 0xFFFFFFFF
_BLOB = 2**24


def packed_changes(changes: Mapping[bytes, bytes | None]) -> list[bytes]:
    """The changes as scripts take them: strings of records, each of a key's size, a value's, and both."""
    parts = (
        struct.pack(">II", len(key), _ABSENT if value is None else len(value)) + key + (value or b"")
        for key, value in changes.items()
    )
    return list(_joined(parts))


def packed_strings(strings: Iterable[bytes]) -> bytes:
    """Strings as scripts take them: each with its size before it."""
    return b"".join(struct.pack(">I", len(string)) + string for string in strings)


def _joined(parts: Iterable[bytes]) -> Iterator[bytes]:
    """The parts, joined to larger ones: a command has a limited number of arguments."""
    blob: list[bytes] = []
    size = 0
    for part in parts:
        blob.append(part)
        size += len(part)
        if size >= _BLOB:
            yield b"".join(blob)
            blob, size = [], 0
    if blob:
        yield b"".join(blob)


_COMMON = """
local database, idle = ARGV[1], tonumber(ARGV[2])
local readers = database .. ':readers'

local function deadline() return tonumber(redis.call('TIME')[1]) + idle end

local function forget(id)
    for _, where in ipairs(redis.call('SMEMBERS', database .. ':touched:' .. id)) do
        redis.call('UNLINK', where .. ':old:' .. id, where .. ':changed:' .. id)
    end
    redis.call('UNLINK', database .. ':touched:' .. id)
    redis.call('ZREM', readers, id)
end

-- Those for whom old values are kept. Those whose time is over are given up.
local function living()
    local all = redis.call('ZRANGE', readers, 0, -1)
    if #all > 0 then
        for _, id in ipairs(redis.call('ZRANGEBYSCORE', readers, '-inf', '(' .. deadline() - idle)) do forget(id) end
        all = redis.call('ZRANGE', readers, 0, -1)
    end
    return all
end

-- From this instant on, also if the same was asked for before, and the answer was lost with the connection.
local function enter(id)
    forget(id)
    living()
    redis.call('ZADD', readers, deadline(), id)
end

local function go_on(id)
    if not redis.call('ZSCORE', readers, id) then return redis.error_reply('GONE') end
    redis.call('ZADD', readers, deadline(), id)
    return nil
end

-- Set a key, or delete it if there is no value.
local function change(ids, where, key, value)
    if #ids > 0 then
        local old = redis.call('HGET', where .. ':entries', key)
        for _, id in ipairs(ids) do
            if redis.call('ZADD', where .. ':changed:' .. id, 'NX', 0, key) == 1 then
                redis.call('SADD', database .. ':touched:' .. id, where)
                if old then redis.call('HSET', where .. ':old:' .. id, key, old) end
            end
        end
    end
    if value then
        redis.call('HSET', where .. ':entries', key, value)
        redis.call('ZADD', where .. ':order', 0, key)
    else
        redis.call('HDEL', where .. ':entries', key)
        redis.call('ZREM', where .. ':order', key)
    end
end

local function change_all(ids, where, blob)
    local at = 1
    while at <= #blob do
        local key_size, value_size
        key_size, value_size, at = struct.unpack('>I4I4', blob, at)
        local key = string.sub(blob, at, at + key_size - 1)
        at = at + key_size
        local value = false
        if value_size ~= 4294967295 then
            value = string.sub(blob, at, at + value_size - 1)
            at = at + value_size
        end
        change(ids, where, key, value)
    end
end

local function clear(ids, where)
    if #ids > 0 then
        for _, key in ipairs(redis.call('ZRANGE', where .. ':order', 0, -1)) do change(ids, where, key, false) end
    end
    redis.call('UNLINK', where .. ':entries', where .. ':order')
end

local function strings(blob)
    local found, at = {}, 1
    while at <= #blob do
        local size
        size, at = struct.unpack('>I4', blob, at)
        found[#found + 1] = string.sub(blob, at, at + size - 1)
        at = at + size
    end
    return found
end
"""

APPLY = _COMMON + """
-- TABLE BLOB...: make the changes.
local ids = living()
for i = 4, #ARGV do change_all(ids, ARGV[3], ARGV[i]) end
"""

POP = _COMMON + """
-- TABLE KEY: delete the key, and return the value that it had.
local value = redis.call('HGET', ARGV[3] .. ':entries', ARGV[4])
if value then change(living(), ARGV[3], ARGV[4], false) end
return value
"""

POP_END = _COMMON + """
-- TABLE: delete the last key, and return it and its value.
local key = redis.call('ZREVRANGEBYLEX', ARGV[3] .. ':order', '+', '-', 'LIMIT', 0, 1)[1]
if not key then return false end
local value = redis.call('HGET', ARGV[3] .. ':entries', key)
change(living(), ARGV[3], key, false)
return {key, value}
"""

SET_DEFAULT = _COMMON + """
-- TABLE KEY VALUE: set the key if it is not there, and return its value.
local value = redis.call('HGET', ARGV[3] .. ':entries', ARGV[4])
if value then return value end
change(living(), ARGV[3], ARGV[4], ARGV[5])
return ARGV[5]
"""

CLEAR = _COMMON + """
-- TABLE: delete all keys.
clear(living(), ARGV[3])
"""

DROP = _COMMON + """
-- TABLE NAME: delete all keys, and the table. Returns whether it was there.
clear(living(), ARGV[3])
return redis.call('SREM', database .. ':tables', ARGV[4])
"""

ENTER = _COMMON + """
-- ID: begin to read.
enter(ARGV[3])
"""

LEAVE = _COMMON + """
-- ID...: they read no more.
for i = 3, #ARGV do forget(ARGV[i]) end
"""

LOOK = _COMMON + """
-- TABLE ID KEY...: the values that these keys had when the reader began; nothing for those that were not there.
local gone = go_on(ARGV[4])
if gone then return gone end
local found = {}
for i = 5, #ARGV do
    local changed = redis.call('ZSCORE', ARGV[3] .. ':changed:' .. ARGV[4], ARGV[i])
    local where = changed and (ARGV[3] .. ':old:' .. ARGV[4]) or (ARGV[3] .. ':entries')
    found[#found + 1] = redis.call('HGET', where, ARGV[i])
end
return found
"""

COUNT = _COMMON + """
-- TABLE ID: how many keys there were when the reader began.
local gone = go_on(ARGV[4])
if gone then return gone end
local count = redis.call('HLEN', ARGV[3] .. ':entries') + redis.call('HLEN', ARGV[3] .. ':old:' .. ARGV[4])
for _, key in ipairs(redis.call('ZRANGE', ARGV[3] .. ':changed:' .. ARGV[4], 0, -1)) do
    count = count - redis.call('HEXISTS', ARGV[3] .. ':entries', key)
end
return count
"""

PAGE = _COMMON + """
-- TABLE MODE ID FIRST LAST REVERSE LIMIT VALUES ROOM: a page of keys and values between two bounds.
--
-- MODE is 'live', what is there now; 'as of', what was there when the reader began; or 'enter', what is there now,
-- and if that is not all, ID is a reader from now on.
--
-- Returns {entries, bound, old entries, bound}: keys and values in turn, those that have not changed and those that
-- have. Behind a bound, if there is one, there may be more.
local where, mode, id = ARGV[3], ARGV[4], ARGV[5]
local command = ARGV[8] == '1' and 'ZREVRANGEBYLEX' or 'ZRANGEBYLEX'
local limit, values, room = tonumber(ARGV[9]), ARGV[10] == '1', tonumber(ARGV[11])
local changed, old = where .. ':changed:' .. id, where .. ':old:' .. id

local function page(order, entries, wanted)
    local found, size, bound = {}, 0, false
    local keys = redis.call(command, order, ARGV[6], ARGV[7], 'LIMIT', 0, limit)
    for i, key in ipairs(keys) do
        if wanted(key) then
            local value = values and redis.call('HGET', entries, key) or ''
            found[#found + 1] = key
            found[#found + 1] = value
            size = size + #key + #value
        end
        if i == limit or (size >= room and i < #keys) then
            bound = key
            break
        end
    end
    return found, bound
end

local kept, kept_bound = {}, false
local wanted = function() return true end
if mode == 'as of' then
    local gone = go_on(id)
    if gone then return gone end
    wanted = function(key) return not redis.call('ZSCORE', changed, key) end
    kept, kept_bound = page(changed, old, function(key) return redis.call('HEXISTS', old, key) == 1 end)
end
local found, bound = page(where .. ':order', where .. ':entries', wanted)
if mode == 'enter' and bound then enter(id) end
return {found, bound, kept, kept_bound}
"""

COMMIT = _COMMON + """
-- ID (TABLE KEYS RANGES NUMBER BLOB...)...: make the changes of all tables, unless another has changed one of the keys,
-- or something between the pairs of bounds, since the reader began. Then the reader is gone.
local id, at = ARGV[3], 4
local gone = go_on(id)
if gone then return gone end
local tables = {}
while at <= #ARGV do
    local one = {where = ARGV[at], blobs = {}}
    local changed = one.where .. ':changed:' .. id
    for _, key in ipairs(strings(ARGV[at + 1])) do
        if redis.call('ZSCORE', changed, key) then return 'CONFLICT' end
    end
    local bounds = strings(ARGV[at + 2])
    for i = 1, #bounds, 2 do
        if #redis.call('ZRANGEBYLEX', changed, bounds[i], bounds[i + 1], 'LIMIT', 0, 1) > 0 then return 'CONFLICT' end
    end
    for i = 1, tonumber(ARGV[at + 3]) do one.blobs[i] = ARGV[at + 3 + i] end
    tables[#tables + 1] = one
    at = at + 4 + #one.blobs
end
forget(id)
local ids = living()
for _, one in ipairs(tables) do
    for _, blob in ipairs(one.blobs) do change_all(ids, one.where, blob) end
end
return 'OK'
"""
