"""Work on whole files: opening, creating and publishing them, sorting entries, finding intact pages, comparing.

`temporary` creates and removes files that no other process touches; `publish` gives them their name when they are
complete and on the disk. `opening` opens or creates the file of a database. `sorting` sorts more entries than fit in
memory. `intact_pages` finds the readable pages of a damaged file. `tree_diff` compares two states of one database.
`arguments` holds the types of common arguments.
"""
