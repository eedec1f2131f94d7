"""How processes that work on CPUs are told to keep the memory that they have.

glibc gives tensors of more than 32 MB, and any that a thread other than the first frees, back to the system at once, and
gets new pages for the next ones: zeroed, and on a virtual machine often fetched from its host. That took a third of
sampling's time and of a training step's. One heap for all threads that never shrinks needs no new page after the first
steps. It must be in the environment before a process starts.
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
