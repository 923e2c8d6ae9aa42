"""Pinned threads, which lend their cores to one another while another process has some of them.

On a core that it shares with a busy process, a thread waits for whole ticks of the scheduler (4 ms with
`CONFIG_HZ=250`), even for a run that takes 3 ms. Linux cannot move a pinned thread to a core that has become
idle. Without pins, it often starts two members on one core while the other core is idle.
"""

import threading
import time
from collections.abc import Callable, Sequence

from coserve_server.machine.cores import pin_thread

LACK_NS = 300_000
"""How long a thread must have waited for other processes to be moved, which costs it some 50 µs."""
TAKEN_SHARE = 0.2
"""Other processes that use more of a core's time take it: a thread that runs there will soon wait again."""
TAKEN_NS = 100_000_000
"""How long a core counts as taken."""


class Pin:
    """Keeps a thread on cores of its own.

    Attributes:
        cores: the kernel's numbers of these cores.
        beside: pins of the threads that borrow these cores while this thread has nothing to do.
        working: whether the thread has something to do.
    """

    def __init__(self, cores: tuple[int, ...], thread: int, cpu_ns: Callable[[], int]) -> None:
        """Describe a thread that is pinned already.

        Args:
            thread: the kernel's number of the thread.
            cpu_ns: returns the processor time that the thread has used, in nanoseconds.
        """
        self.cores = cores
        self.beside: Sequence[Pin] = ()
        self.working = False
        self._thread = thread
        self._cpu_ns = cpu_ns
        self._host: Pin | None = None
        self._start_ns = 0
        self._start_cpu_ns = 0
        self._start_others_ns = 0
        self._taken_until_ns = 0

    @classmethod
    def this_thread(cls, cores: tuple[int, ...]) -> "Pin | None":
        """Pin the calling thread; return None if the system does not allow it."""
        if not pin_thread(cores):
            return None
        return cls(cores, threading.get_native_id(), _cpu_clock())

    def start(self) -> None:
        """Note that the thread has something to do, on its own cores; called by any thread."""
        self._go_home()
        for guest in self.beside:
            if guest._host is self:
                guest._go_home()
        self._start_ns = time.perf_counter_ns()
        self._start_cpu_ns = self._cpu_ns()
        self._start_others_ns = self._others_ns()
        self.working = True

    def stop(self) -> None:
        """Note that the thread has done everything, and lend its cores to one that lacks its own."""
        self.working = False
        if self._host is None:
            guest = next((one for one in self.beside if one._lacks_core()), None)
            if guest is not None:
                guest._move_to(self)

    def _lacks_core(self) -> bool:
        """Return whether other processes keep the thread waiting, or have just taken much of its core.

        Waits for this process's own threads, such as the event loop, do not count: they end soon, and moving
        for them costs more than it gains: 6% of the throughput of 8 clients on two cores.
        """
        if not self.working or self._host is not None:
            return False
        now_ns = time.perf_counter_ns()
        used_ns = self._cpu_ns()
        elapsed_ns = now_ns - self._start_ns
        waited_ns = elapsed_ns - (used_ns - self._start_cpu_ns)
        # Without a clock of the thread, the difference can be negative.
        foreign_ns = waited_ns - max(0, self._others_ns() - self._start_others_ns)
        if foreign_ns > max(LACK_NS, TAKEN_SHARE * elapsed_ns):
            self._taken_until_ns = now_ns + TAKEN_NS
        # The clock of a thread that runs moves between two readings.
        waits = foreign_ns > LACK_NS and self._cpu_ns() == used_ns
        return waits or now_ns < self._taken_until_ns

    def _others_ns(self) -> int:
        """Return the processor time of this process's threads that are not pinned."""
        return time.process_time_ns() - self._cpu_ns() - sum(one._cpu_ns() for one in self.beside)

    def _move_to(self, host: "Pin") -> None:
        # A single core makes the thread move; with two, it can go back once the other process has left.
        pin_thread(host.cores, self._thread)
        pin_thread((*host.cores, *self.cores), self._thread)
        # Last: a thread that starts something meanwhile then goes home at its next start.
        self._host = host

    def _go_home(self) -> None:
        if self._host is not None:
            self._host = None
            pin_thread(self.cores, self._thread)


def _cpu_clock() -> Callable[[], int]:
    """Return a reader of the calling thread's processor time, or of one that never waits if that fails."""
    try:
        clock = time.pthread_getcpuclockid(threading.get_ident())
        time.clock_gettime_ns(clock)
    # Not every sandbox has this clock.
    except (OSError, AttributeError):
        return time.perf_counter_ns
    return lambda: time.clock_gettime_ns(clock)
