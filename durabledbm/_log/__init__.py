"""The files of a change log, which `durabledbm.changelog` puts together.

`records` turns one change into bytes and back, `files` reads a directory of files as one log, `writer` appends to it.
`streams` reads and writes the same records as one stream, for dumps. `overlay` computes the newest change of each key
and applies it to sorted entries.
"""
