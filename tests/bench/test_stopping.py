"""Repeated requests to stop."""

import os
import signal
from collections.abc import Iterator

import pytest

from coserve_bench.stopping import SIGNALS, stop_once


@pytest.fixture(autouse=True)
def _handlers() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", SIGNALS)
def test_only_the_first_signal_interrupts(number: signal.Signals) -> None:
    stop_once()
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), number)
    for again in SIGNALS:
        os.kill(os.getpid(), again)
