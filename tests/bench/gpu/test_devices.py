"""Streams of a GPU, without one."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch

from coserve_bench.gpu.devices import Cuda


class Stream:
    """Notes what it waits for, and the calls that run on it."""

    def __init__(self, name: str, events: list[str]) -> None:
        self.name = name
        self.events = events

    def wait_stream(self, other: "Stream") -> None:
        self.events.append(f"{self.name} waits for {other.name}")


def test_calls_at_once_do_not_wait_for_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[str] = []
    first, second = (Stream(name, events) for name in ("first", "second"))

    @contextmanager
    def use(stream: Stream) -> Iterator[None]:
        events.append(f"call on {stream.name}")
        yield

    # The stream of a capture may be one of the members'.
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: first)
    monkeypatch.setattr(torch.cuda, "stream", use)
    device = Cuda.__new__(Cuda)
    device._streams = [first, second]  # type: ignore[list-item]
    device.together([lambda: torch.zeros(1)] * 2)
    assert events.index("second waits for first") < events.index("call on first")
    assert events[-1] == "first waits for second"
