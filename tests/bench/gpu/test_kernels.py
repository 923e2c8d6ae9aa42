"""The overlap of kernels in a profile."""

from typing import Any

import pytest

from coserve_bench.gpu.kernels import read_overlap


def kernel(start: float, duration: float, stream: int) -> dict[str, Any]:
    return {"cat": "kernel", "ts": start, "dur": duration, "args": {"stream": stream}}


@pytest.mark.parametrize(
    ("kernels", "expected"),
    [
        ([], {"kernels": 0}),
        (
            [kernel(0, 1000, 7), kernel(3000, 1000, 7)],
            {"kernels": 2, "streams": 1, "busy_ms": 2, "overlap": 1, "gaps": 0.5},
        ),
        # The second ends within the first, and the third runs on from it.
        (
            [kernel(500, 200, 8), kernel(0, 1000, 7), kernel(800, 400, 8)],
            {"kernels": 3, "streams": 2, "busy_ms": 1.2, "overlap": 1600 / 1200, "gaps": 0},
        ),
    ],
    ids=["none", "in turn", "at once"],
)
def test_overlap_of_kernels(kernels: list[dict[str, Any]], expected: dict[str, float]) -> None:
    events = [{"cat": "cpu_op", "ts": 0, "dur": 9999, "args": {}}, {"name": "no category"}, *kernels]
    assert read_overlap({"traceEvents": events}) == pytest.approx(expected)
