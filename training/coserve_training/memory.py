"""Memory that stays in the process: on CPUs, every batch allocates and frees the same large buffers."""

import ctypes
import mmap
import os
import platform

# glibc's <malloc.h>
M_TRIM_THRESHOLD = -1
M_MMAP_MAX = -4
NEVER = -1


def keep_memory() -> None:
    """Keep freed memory in this process, in huge pages, instead of returning it to the system.

    By default, glibc returns a large buffer to the system when it is freed, and the kernel clears the
    pages of the next one. The process keeps its peak memory until it ends, so call this only in a process
    that does nothing but training or evaluating. It has no effect with another C library than glibc.

    Source: mallopt(3) and madvise(2).
    """
    if platform.libc_ver()[0] != "glibc":
        return
    libc = ctypes.CDLL(None)
    libc.malloc.restype = ctypes.c_void_p
    libc.malloc.argtypes = [ctypes.c_size_t]
    libc.free.argtypes = [ctypes.c_void_p]
    libc.sbrk.restype = ctypes.c_ssize_t
    libc.sbrk.argtypes = [ctypes.c_ssize_t]
    libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    libc.mallopt(M_MMAP_MAX, 0)
    libc.mallopt(M_TRIM_THRESHOLD, NEVER)
    # Ask for huge pages while nothing has touched the heap's growth: only touched pages take memory.
    size = os.sysconf("SC_PHYS_PAGES") // 2 * mmap.PAGESIZE
    # Where `ulimit -v` refuses that much, malloc would leave the heap for good.
    if libc.sbrk(size) == -1:
        return
    libc.sbrk(-size)
    start = libc.malloc(size)
    if start is None:
        return
    first_page = -start % mmap.PAGESIZE
    libc.madvise(start + first_page, size - first_page - mmap.PAGESIZE, mmap.MADV_HUGEPAGE)
    libc.free(start)
