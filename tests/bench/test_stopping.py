"""Requests to stop."""

import asyncio
import os
import signal
from collections.abc import Iterator

import pytest

from coserve_bench.stopping import (
    SIGNALS,
    blocking_signals,
    check_stopped,
    is_stopped,
    noting_signals,
    run_until_stopped,
)


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in SIGNALS}
    yield
    assert {number: signal.getsignal(number) for number in SIGNALS} == before


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_is_noted_once_and_raises_nothing(number: signal.Signals) -> None:
    with noting_signals():
        check_stopped()
        os.kill(os.getpid(), number)
        assert is_stopped()
        for again in SIGNALS:
            os.kill(os.getpid(), again)
        with pytest.raises(KeyboardInterrupt):
            check_stopped()
    check_stopped()


def test_a_signal_in_a_finaliser_is_not_lost() -> None:
    class Finalised:
        def __del__(self) -> None:
            os.kill(os.getpid(), signal.SIGINT)

    with noting_signals():
        Finalised()
        assert is_stopped()


def test_a_signal_cancels_what_runs() -> None:
    ended = []

    async def work() -> None:
        asyncio.get_running_loop().call_later(0.01, signal.raise_signal, signal.SIGTERM)
        try:
            await asyncio.Event().wait()
        finally:
            ended.append(True)

    with noting_signals():
        with pytest.raises(KeyboardInterrupt):
            run_until_stopped(work())
        assert ended
        with pytest.raises(KeyboardInterrupt):
            run_until_stopped(work())
        assert len(ended) == 1, "the second one has not begun"


def test_what_is_not_stopped_gives_its_result() -> None:
    async def work() -> int:
        return 7

    async def cancelled() -> None:
        raise asyncio.CancelledError

    assert run_until_stopped(work()) == 7
    with pytest.raises(asyncio.CancelledError):
        run_until_stopped(cancelled())


def test_blocked_signals_arrive_later() -> None:
    with noting_signals():
        with blocking_signals():
            signal.raise_signal(signal.SIGINT)
            assert not is_stopped()
        assert is_stopped()
