"""How many images are divided among requests."""

import io
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from coserve_client.batching import BATCH_BYTES, split


def test_a_full_batch_does_not_wait_for_the_next_image() -> None:
    taken: list[int] = []

    def sources() -> Iterator[bytes]:
        for index in range(5):
            taken.append(index)
            yield b"x"

    counts = [(len(batch), len(taken)) for batch in split(sources(), 2)]
    assert counts == [(2, 2), (2, 4), (1, 5)]


def test_batches_are_limited_in_bytes(tmp_path: Path) -> None:
    large = tmp_path / "large.png"
    with large.open("wb") as file:
        file.truncate(BATCH_BYTES)
    end, start = os.pipe()
    opened = io.BytesIO(bytes(BATCH_BYTES))
    pipe = os.fdopen(end, "rb")
    opened.seek(1)
    sizes: list[list[Any]] = [
        [b"x"],
        [large],
        [b"y", b"z"],
        [tmp_path / "none.png"],
        [b"w"],
        [large],
        [opened, b"1"],
        [pipe],
        [f"/dev/fd/{end}"],
    ]
    assert list(split([source for batch in sizes for source in batch], 2)) == sizes
    assert opened.tell() == 1
    os.close(start)
    pipe.close()
    assert list(split([b"12", large, b"3", b"4"], 9)) == [[b"12"], [large], [b"3", b"4"]]
    half = bytearray(BATCH_BYTES // 2)
    assert [len(batch) for batch in split([half, memoryview(half), half], 9)] == [2, 1]
    assert list(split([], 9)) == []
