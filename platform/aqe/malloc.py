"""How processes that work on CPUs are told to keep the memory that they have.

glibc gives tensors of more than 32 MB, and in other threads than the first any large ones, back to the system at once,
and gets new pages for the next: zeroed, and on a virtual machine often fetched from its host. That took a third of
sampling's time. One heap for all threads that never shrinks needs no new page after the first steps. The environment
must hold this before a process starts.
"""

KEEP_MEMORY = {
    "GLIBC_TUNABLES": ":".join(
        f"glibc.malloc.{name}={value}"
        for name, value in {
            # Only the first heap can grow to any size.
            "arena_max": 1,
            "mmap_max": 0,
            "trim_threshold": 1 << 40,
            # Huge pages where the system lets programs ask for them.
            "hugetlb": 1,
        }.items()
    )
}
