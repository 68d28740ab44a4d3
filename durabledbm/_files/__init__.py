"""Work on whole files: creating and publishing them, building a database in one pass, finding intact pages.

`temporary` creates files that nobody else touches, and removes them; `publish` gives them their name when they are
complete and on the disk. `opening` opens or creates the file of a database. `builder` writes a database from sorted
entries, which `sorting` can put in order. `intact_pages` finds the readable pages of a damaged file. `tree_diff`
compares two states of one database.
"""
