"""What depends on the process: its open handles, its forks and its end, its child processes, the caller of a function.

`handles` flushes open handles before a fork and at the end of the interpreter. `caller_context` tells whether a call
comes from the context that began something. `children` has child processes use durabledbm after `install()`.
"""
