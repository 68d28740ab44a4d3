"""Databases of other kinds: recognizing, reading and writing them.

`kinds` recognizes a database by its names and first bytes, and says in one line how to convert it. `sources` opens one
for reading, and writes those that a Python can write. `dumb`, `gnu`, `berkeley` and `lmdb` each read one kind of file
without the module or library that wrote it; `file` is one such file.

Readers never write. They check everything in a file before they use it, so a damaged file ends neither in a crash nor
in a loop. They report what they cannot read to the function `damaged`. It may raise; if it returns, the reader goes on
with the rest.
"""
