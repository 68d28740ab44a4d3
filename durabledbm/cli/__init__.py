"""The command line: `durabledbm …` and `python -m durabledbm …`.

Reading order: `app` (from arguments to an exit status), `command` (what a command is, and its help), `text` (bytes as
text and back, the terminal), `faults` (an exception as one line that says what to do next), then the groups of
commands: `data`, `care`, `copies`, `moving`, `programs`. `completion` and `reference` are generated from the same
descriptions as `--help`. `pictures` draws the map of `inspect`, and `tour` is the demonstration.

Everything here is for people at a terminal or for scripts; the library does not use it. A command imports the modules
of the library that only it needs.
"""
