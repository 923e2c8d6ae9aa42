"""Decoding in a process of its own."""

import io
import os
import pickle
import platform
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from coserve_images import apart
from coserve_images.apart import DecodingProcess, UnavailableError
from coserve_images.decode import open_image
from coserve_images.errors import ImageError, LateError
from coserve_images.preprocess import preprocess
from tests.images.hostile_images import encoded


@dataclass(frozen=True)
class Input:
    height: int = 20
    width: int = 24
    resize_size: int | None = 28
    interpolation: str = "bicubic"
    mean: tuple[float, ...] = (0.5, 0.4, 0.3)
    std: tuple[float, ...] = (0.2, 0.3, 0.4)


FILE = encoded((90, 70), "WEBP")


def soon(seconds: float = 60) -> int:
    return time.perf_counter_ns() + int(seconds * 1e9)


@pytest.fixture
def process() -> Iterator[DecodingProcess]:
    process = DecodingProcess(soon())
    yield process
    if process.alive:
        process.close()


def test_the_tensor_is_the_same_as_in_this_process(process: DecodingProcess) -> None:
    for kind in ("WEBP", "AVIF", "JPEG"):
        data = encoded((90, 70), kind)
        with open_image(data) as opened:
            image, box = opened.decode(28)
        began = time.perf_counter_ns()
        tensor, decoded_ns = process.prepare(data, Input(), 10_000, soon())
        np.testing.assert_array_equal(tensor, preprocess(image, Input(), box=box))
        assert tensor.dtype == np.float32
        assert began < decoded_ns < time.perf_counter_ns()


def test_an_image_that_is_refused_leaves_the_process_alive(process: DecodingProcess) -> None:
    with pytest.raises(ImageError, match="90 x 70 pixels, more than the 6299 allowed"):
        process.prepare(FILE, Input(), 6299, soon())
    with pytest.raises(ImageError, match="broken or truncated"):
        process.prepare(FILE[:200], Input(), 6300, soon())
    assert process.alive
    process.prepare(FILE, Input(), 6300, soon())


def test_an_answer_that_cannot_be_read_ends_the_process(
    process: DecodingProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> None:
        raise pickle.UnpicklingError("truncated")

    monkeypatch.setattr(process._connection, "recv", fail)
    with pytest.raises(pickle.UnpicklingError):
        process.prepare(FILE, Input(), 10_000, soon())
    assert not process.alive


# A megabyte does not fit into the connection's buffer.
@pytest.mark.parametrize("data", [FILE, bytes(2**20)], ids=["small", "large"])
def test_the_deadline_ends_the_process(process: DecodingProcess, data: bytes) -> None:
    os.kill(process._process.pid, signal.SIGSTOP)
    with pytest.raises(LateError, match="before the deadline"):
        process.prepare(data, Input(), 10_000, soon(0.05))
    assert not process.alive


def test_the_deadline_ends_a_process_that_does_not_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(apart, "_START", "import time; time.sleep(600)")
    began = time.monotonic()
    with pytest.raises(LateError, match="before the deadline"):
        DecodingProcess(soon(0.2))
    assert time.monotonic() - began < 60


def test_a_process_ended_just_after_its_answer_is_not_lent_again(
    process: DecodingProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    timers: list[threading.Timer] = []

    class Late(threading.Timer):
        def __init__(self, interval: float, function: Callable[[], None]) -> None:
            super().__init__(interval, function)
            timers.append(self)

        def cancel(self) -> None:
            # As if it had gone off just before.
            self.function()
            super().cancel()

    monkeypatch.setattr(apart.threading, "Timer", Late)
    process.prepare(FILE, Input(), 10_000, soon())
    assert not process.alive
    assert not any(timer.is_alive() for timer in timers)


def test_a_process_that_ends_is_an_error_of_the_image(process: DecodingProcess) -> None:
    process._process.kill()
    process._process.wait()
    assert not process.alive
    with pytest.raises(ImageError, match="for lack of memory"):
        process.prepare(FILE, Input(), 10_000, soon())


def test_without_a_process_the_error_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    with pytest.raises(UnavailableError, match="No such file"):
        DecodingProcess(soon())
    monkeypatch.undo()
    monkeypatch.setattr(apart, "_START", "raise SystemExit(3)")
    with pytest.raises(UnavailableError, match=r"ended with (3|-9)"):
        DecodingProcess(soon())


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc's mallopt and /proc")
def test_the_memory_of_an_image_is_returned(process: DecodingProcess) -> None:
    def megabytes() -> int:
        lines = Path(f"/proc/{process._process.pid}/status").read_text().splitlines()
        return next(int(line.split()[1]) // 1024 for line in lines if line.startswith("VmRSS"))

    kinds = ("PNG", "TIFF")
    for kind in kinds:
        process.prepare(encoded((9, 7), kind), Input(), 10**8, soon())
    before = megabytes()
    for kind in kinds:
        # 64 MB of pixels, whose return makes glibc keep the next ones; the TIFF is a file of 48 MB.
        file = io.BytesIO()
        Image.new("RGB", (4000, 4000)).save(file, kind)
        process.prepare(file.getvalue(), Input(), 10**8, soon(200))
        assert megabytes() - before < 16, kind
