"""Readers of other databases' files, which need neither the modules nor the libraries that wrote them.

`file` is one such file; `dumb`, `gnu`, `berkeley` and `lmdb` each read one kind. They read and never write. Nothing in
a file is believed before it is checked, so a damaged one ends neither in a crash nor in a loop: what cannot be read is
told to the function `damaged`, which may raise; if it returns, the reader goes on with the rest.

Each class is what `durabledbm._foreign` calls a source.
"""
