"""Pictures of a database file: what `durabledbm inspect` draws of a `FileMap`.

`layout` divides the map into cells and sums up; `terminal`, `svg` and `html` draw the result. They are pure: a map in,
text out. `palette` defines the colours of all pictures.
"""
