"""Runs a command in an odd process: `python odd_process.py ODDITY… -- COMMAND…`.

forbidden: seccomp forbids to ask for, and to set, the CPU affinity.
hidden: /proc, /sys and /dev/shm are empty.
obedient: permissions hold for root too.
closed: standard input and output are closed.
"""

import ctypes
import os
import struct
import sys

CLONE_NEWNS = 0x20000
MS_PRIVATE = 1 << 18
MS_REC = 1 << 14
PR_CAPBSET_DROP = 24
PR_SET_NO_NEW_PRIVS = 38
PR_SET_SECCOMP = 22
CAP_DAC_OVERRIDE = 1
CAP_DAC_READ_SEARCH = 2
AFFINITY = (203, 204)
"""Numbers of sched_setaffinity(2) and sched_getaffinity(2) on x86-64."""
EPERM = 1
libc = ctypes.CDLL(None, use_errno=True)


def check(result: int) -> None:
    if result != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def forbidden() -> None:
    load_number = (0x20, 0, 0, 0)
    refuse = (0x06, 0, 0, 0x50000 | EPERM)
    allow = (0x06, 0, 0, 0x7FFF0000)
    tests = [(0x15, len(AFFINITY) - index, 0, number) for index, number in enumerate(AFFINITY)]
    program = b"".join(struct.pack("HBBI", *one) for one in (load_number, *tests, allow, refuse))
    buffer = ctypes.create_string_buffer(program)
    header = struct.pack("HxxxxxxP", len(program) // 8, ctypes.addressof(buffer))
    check(libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
    check(libc.prctl(PR_SET_SECCOMP, 2, ctypes.create_string_buffer(header), 0, 0))


def hidden() -> None:
    check(libc.unshare(CLONE_NEWNS))
    check(libc.mount(None, b"/", None, MS_REC | MS_PRIVATE, None))
    for place in (b"/proc", b"/sys", b"/dev/shm"):
        check(libc.mount(b"tmpfs", place, b"tmpfs", 1, b"size=4k"))


def obedient() -> None:
    if os.geteuid() == 0:
        for capability in (CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH):
            check(libc.prctl(PR_CAPBSET_DROP, capability, 0, 0, 0))


def closed() -> None:
    os.close(0)
    os.close(1)


if __name__ == "__main__":
    end = sys.argv.index("--")
    for oddity in sys.argv[1:end]:
        globals()[oddity]()
    os.execv(sys.argv[end + 1], sys.argv[end + 1 :])
