"""The command line: `durabledbm …` and `python -m durabledbm …`.

Reading order: `app` (from arguments to an exit status), `command` (what a command is, and how it presents
itself), `text` (bytes as text and back, the terminal), `faults` (an exception as one line that says what to
do next), then the groups of commands: `data`, `care`, `copies`, `programs`. `completion` and `reference` are
made from the same descriptions as `--help`.

What may live here: everything that is for people at a terminal or for scripts. The library knows nothing of
it; modules of the library that are not always needed are imported by the command that needs them.
"""
