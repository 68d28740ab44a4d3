"""The engine: everything that knows about bytes on disk.

Nothing here is public. A module imports only from those above it in this list, which is also the order to read them in
(tests/test_tidy.py holds the package to it).

What the operating system offers
    disk        one open file and its directory, as two small interfaces that are handed in
    posix       the real ones, for Linux, macOS and other POSIX systems
    windows     the real ones, for Windows; its system calls are handed in
    kernel32    those system calls
    native      which of them this system has
    locks       the writer lock and the pins, kept by the kernel

What stands in the file, as pure functions on bytes
    page        runs of pages, sealed and verified
    cells       keys and values, cut out of a node all at once
    node        leaves and branches
    meta        the meta page: the one thing that decides what the database contains
    freepages   free pages in memory
    space       free pages in the file

Reading
    longruns    runs verified piece by piece, without the holes of a sparse file
    pageset     which pages a walk has come to
    pager       verified reads of runs, through a cache
    tree        the tree under one root, which never changes
    walk        the one walk through a tree: each page once
    view        a tree with layers of changes on top
    state       a committed state: a meta and its view

Writing
    writer      gives every new run its place
    draft       how entries are cut into nodes
    joining     which nodes are put together
    merge       the one way in which a tree gets a successor
    vacuum      what stands at the end of a file, and how to get it out of the way
    commit      how a batch of changes becomes the database, and survives

One file as a whole
    recovery    which of the two meta pages to believe
    creation    how a file comes into being
    work        changes in the making
    spill       transactions that outgrow memory
    rows        values that were read lately
    pins        the pins of one handle
    observer    who is told of commits
    current     the current state of one open file, and who reads it
    store       one open file: who may read and write it

The ways of a write to the disk
    operations  single writes that depend on what there is
    flusher     the thread that writes in time
    pipes       what pipelines have in common
    group       commit before returning, together with others
    deferred    commit later, all at once
    pipeline    one for each durability mode
"""
