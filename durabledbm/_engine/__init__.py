"""The engine: everything that knows about bytes on disk.

Nothing here is public. A module imports only from those above it in this list, which is also the order to read them in
(tests/test_tidy.py holds the package to it). To begin with the heart of it, read `commit` first.

What the operating system offers
    disk.protocol    one open file and its directory, as two small interfaces that are handed in
    disk.posix       the real ones, for Linux, macOS and other POSIX systems
    disk.windows     the real ones, for Windows; its system calls are handed in
    disk.kernel32    those system calls
    disk             picks the real ones of this system
    threads          what may interrupt a thread, how threads wait, and how they queue
    locks            the writer lock and the pins: bytes that the kernel locks

What stands in the file, as pure functions on bytes
    checksum         CRC32C
    kernels          which of the functions marked as twins run in C
    page             runs of pages, sealed and verified
    node             leaves and branches
    meta             the meta page: the one thing that decides what the database contains
    allocator        free pages in memory
    freemap          free pages in the file

Reading
    sparse           runs verified piece by piece, without the holes of a sparse file
    recovery         which of the two meta pages to believe
    cache            two generations of nodes, and of rows
    pager            verified reads of runs, through a cache
    tree             look-ups, scans, and the one walk through a tree
    view             a tree with layers of changes on top, and committed states
    readers          who reads which commit
    files            how a file becomes a database, and what may happen to it from outside
    store            one open file, and the newest commit in it

Writing
    changeset        changes in the making
    page_writer      gives every new run its place
    balance          how full nodes are: splitting, and putting together
    merge            the one way in which a tree gets a successor
    bulkload         a file built in the order of its keys
    shrink           what stands at the end of a file, and how to get it out of the way
    spill            transactions that outgrow memory
    prepare          the meta page of the next commit, and the pages that it names
    commit           write, sync, publish: how a batch of changes becomes the database, and survives

The ways of a write to the disk
    pipeline         what the two ways have in common
    flusher          the thread that writes in time
    group_commit     commit before returning, together with others
    deferred_commit  commit later, all at once
    durability       which way each durability mode takes
"""
