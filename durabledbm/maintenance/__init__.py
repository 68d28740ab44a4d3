"""Looking after one file: `check`, `stats`, `reorganize` and `backup` implement the methods of `Database`.

`inspect` maps a file page by page for `durabledbm inspect`: `survey` finds out what each page is, and `file_map` is the
result.
"""
