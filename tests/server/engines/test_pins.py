"""Pinned threads lend their cores; clocks and affinities are simulated."""

import itertools
import os
import threading
import time

import pytest

from coserve_server.engines.embedded import pins
from coserve_server.engines.embedded.lanes import Lane
from coserve_server.engines.embedded.pins import LACK_NS, TAKEN_NS, Pin

MS = 1_000_000


class Machine:
    """Three pinned threads on cores of the same numbers, an event loop, and their clocks."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now_ns = 0
        self.used_ns = {1: 0, 2: 0, 3: 0}
        self.running: set[int] = set()
        self.at = {1: (1,), 2: (2,), 3: (3,)}
        self.pinned: list[tuple[int, tuple[int, ...]]] = []
        self.loop_ns = 0
        monkeypatch.setattr(time, "perf_counter_ns", lambda: self.now_ns)
        monkeypatch.setattr(time, "process_time_ns", lambda: self.loop_ns + sum(self.used_ns.values()))
        monkeypatch.setattr(pins, "pin_thread", self._pin)
        threads = [Pin((core,), core, lambda core=core: self._read(core)) for core in self.at]
        for pin in threads:
            pin.beside = [one for one in threads if one is not pin]
        self.one, self.two, self.three = threads

    def advance(self, wall_ns: int, *used_ns: int) -> None:
        """Let time pass, in which the threads use some processor time, in their order."""
        self.now_ns += wall_ns
        for thread, used in enumerate(used_ns, 1):
            self.used_ns[thread] += used

    def _read(self, thread: int) -> int:
        self.used_ns[thread] += thread in self.running
        return self.used_ns[thread]

    def _pin(self, cores: tuple[int, ...], thread: int) -> bool:
        self.at[thread] = cores
        self.pinned.append((thread, cores))
        return True


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(monkeypatch)


def both_start(machine: Machine) -> None:
    machine.one.start()
    machine.two.start()


def test_a_thread_that_waits_for_its_core_gets_that_of_one_that_is_done(machine: Machine) -> None:
    both_start(machine)
    machine.advance(3 * MS, 3 * MS, 1 * MS)
    machine.one.stop()
    assert machine.at == {1: (1,), 2: (1, 2), 3: (3,)}
    assert machine.pinned == [(2, (1,)), (2, (1, 2))], "it has to leave its own core, and may return"
    machine.advance(2 * MS, 0, 2 * MS)
    machine.two.stop()
    assert machine.at[1] == (1,), "one that is done needs no core"
    machine.two.start()
    assert machine.at == {1: (1,), 2: (2,), 3: (3,)}, "it starts on its own core"
    machine.one.start()
    machine.advance(3 * MS, 3 * MS)
    machine.one.stop()
    assert machine.at[2] == (1, 2), "it may borrow again"


def test_it_goes_home_when_the_host_has_something_to_do(machine: Machine) -> None:
    both_start(machine)
    machine.advance(3 * MS, 3 * MS)
    machine.one.stop()
    machine.one.start()
    assert machine.at == {1: (1,), 2: (2,), 3: (3,)}


def test_a_guest_stays_with_its_host_and_lends_nothing(machine: Machine) -> None:
    both_start(machine)
    machine.advance(3 * MS, 3 * MS)
    machine.one.stop()
    machine.three.stop()
    assert machine.at[2] == (1, 2), "it is a guest already"
    machine.three.start()
    assert machine.at[2] == (1, 2), "only its own host sends it home"
    machine.advance(3 * MS, 0, 3 * MS)
    machine.two.stop()
    assert machine.at[3] == (3,), "the guest's own core is taken"


@pytest.mark.parametrize("lack_ns", [0, LACK_NS])
def test_short_waits_do_not_count(machine: Machine, lack_ns: int) -> None:
    both_start(machine)
    machine.advance(3 * MS, 3 * MS, 3 * MS - lack_ns)
    machine.one.stop()
    assert machine.at[2] == (2,)


def test_waits_for_the_event_loop_do_not_count(machine: Machine) -> None:
    machine.loop_ns += 9 * MS
    both_start(machine)
    machine.advance(3 * MS, 3 * MS, 1 * MS)
    machine.loop_ns += 2 * MS
    machine.one.stop()
    assert machine.at[2] == (2,)
    machine.advance(1 * MS)
    machine.one.stop()
    assert machine.at[2] == (1, 2), "for another process"


def test_a_thread_that_runs_again_after_a_short_wait_stays(machine: Machine) -> None:
    both_start(machine)
    machine.advance(3 * MS, 3 * MS, 3 * MS - 2 * LACK_NS)
    machine.running.add(2)
    machine.one.stop()
    assert machine.at[2] == (2,)


def test_a_thread_whose_core_is_taken_moves_though_it_runs(machine: Machine) -> None:
    both_start(machine)
    machine.advance(3 * MS, 3 * MS, 2 * MS)
    machine.running.add(2)
    machine.one.stop()
    assert machine.at[2] == (1, 2)


@pytest.mark.parametrize(("after_ns", "moves"), [(TAKEN_NS - 4 * MS, True), (TAKEN_NS, False)])
def test_a_core_counts_as_taken_for_some_time(machine: Machine, after_ns: int, moves: bool) -> None:
    both_start(machine)
    machine.advance(3 * MS, 3 * MS, 2 * MS)
    machine.one.stop()
    machine.two.stop()
    machine.advance(after_ns)
    both_start(machine)
    machine.advance(3 * MS, 3 * MS, 3 * MS)
    machine.one.stop()
    assert (machine.at[2] == (1, 2)) == moves


def test_idle_time_is_not_waiting(machine: Machine) -> None:
    both_start(machine)
    machine.two.stop()
    machine.advance(9 * MS)
    machine.one.stop()
    assert machine.at[2] == (2,), "it has nothing to do"
    both_start(machine)
    machine.advance(9 * MS, 9 * MS, 9 * MS)
    machine.one.stop()
    assert machine.at[2] == (2,), "it waited before it started"
    both_start(machine)
    machine.advance(3 * MS, 3 * MS, 1 * MS)
    machine.one.stop()
    assert machine.at[2] == (1, 2), "what it used before does not count either"


def test_one_of_several_moves(machine: Machine) -> None:
    both_start(machine)
    machine.three.start()
    machine.advance(3 * MS, 3 * MS)
    machine.one.stop()
    assert machine.at == {1: (1,), 2: (1, 2), 3: (3,)}


class Recorded(Pin):
    """Notes what its lane tells it."""

    def __init__(self) -> None:
        super().__init__((0,), 0, itertools.count().__next__)
        self.told: list[str] = []

    def start(self) -> None:
        self.told.append("start")
        self.working = True

    def stop(self) -> None:
        self.told.append("stop")
        self.working = False


def nothing() -> None:
    """Do nothing."""


def test_a_lane_starts_when_it_is_given_a_run_and_stops_after_the_last() -> None:
    lane = Lane("one")
    lane.pin = pin = Recorded()
    free = threading.Event()
    lane.submit(free.wait)
    for _ in range(2):
        lane.enqueue(nothing, nothing, nothing)
    assert pin.told == ["start"], "before its thread has a core"
    free.set()
    lane.submit(nothing).result()
    assert pin.told == ["start", "start", "stop"]
    lane.close()


def test_a_run_that_is_queued_while_the_last_one_ends_starts_by_itself() -> None:
    lane = Lane("one")
    lane.pin = pin = Recorded()
    free = threading.Event()
    lane.submit(free.wait)
    lane.enqueue(nothing, nothing, nothing)
    pin.stop()
    free.set()
    lane.submit(nothing).result()
    assert pin.told == ["start", "stop", "start", "stop"]
    lane.close()


def test_a_real_thread_has_a_clock_and_its_cores() -> None:
    core = min(os.sched_getaffinity(0))
    lane = Lane("one", (core,))
    pin = lane.pin
    assert pin is not None
    assert lane.device == f"cpu:{core}"
    before = pin._cpu_ns()
    lane.submit(sum, range(100_000)).result()
    assert pin._cpu_ns() > before
    assert os.sched_getaffinity(pin._thread) == {core}
    lane.close()


@pytest.mark.parametrize("error", [OSError(22, "Invalid argument"), AttributeError("not here")])
def test_without_a_clock_no_thread_waits(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def refuse(*_: object) -> None:
        raise error

    monkeypatch.setattr(time, "pthread_getcpuclockid", refuse)
    core = min(os.sched_getaffinity(0))
    lane = Lane("one", (core,))
    pin = lane.pin
    assert pin is not None
    pin.beside = (Pin((core,), 0, pin._cpu_ns),)
    pin.start()
    # Neither thread nor process uses its core.
    time.sleep(10 * LACK_NS / 1e9)
    assert not pin._lacks_core()
    lane.close()
