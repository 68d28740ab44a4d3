"""Pictures of a database file: what `durabledbm inspect` draws of a `FileMap`.

`layout` divides the map into cells and sums up; `terminal`, `svg` and `html` draw what it says. Pure: a map
in, text out. Colours are chosen once, here in `palette`, so that all pictures speak alike.
"""
