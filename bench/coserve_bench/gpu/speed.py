"""Times the undivided network and its divisions in turns, so that a change of the clock affects all alike."""

import gc
import time
from collections.abc import Iterator, Mapping, Sequence
from statistics import median, quantiles
from typing import Any

from coserve_bench.gpu.devices import Call, Device, set_tf32
from coserve_bench.gpu.ways import GRAPHS_IN_TURN, IN_TURN, Members, build_members, make_ways, random_images

BURST = 4
LEAST_ROUNDS = 5
MOST_ROUNDS = 60
CASE_S = 20
"""Most time for one batch size of one network."""

SERIAL = (IN_TURN, GRAPHS_IN_TURN)

Row = dict[str, Any]


def measure(
    networks: Sequence[str],
    precisions: Sequence[str],
    splits: Sequence[int],
    batch_sizes: Sequence[int],
    device: Device,
    deadline: float,
) -> Iterator[list[Row]]:
    """Yield the rows of each network, precision and batch size, as long as there is time.

    Args:
        deadline: when to stop, of `time.monotonic`.
    """
    left = len(networks) * len(precisions) * len(batch_sizes)
    for precision in precisions:
        set_tf32(precision == "tf32")
        for network in networks:
            members = [build_members(network, split, precision, device) for split in splits]
            for batch_size in batch_sizes:
                now = time.monotonic()
                if now > deadline:
                    return
                end = min(deadline, now + min(CASE_S, (deadline - now) / left))
                case = {"network": network, "precision": precision, "batch_size": batch_size}
                measured = _measure_case(members, batch_size, precision, device, end, deadline)
                yield [case | row for row in measured]
                left -= 1


def _measure_case(
    members: Sequence[Members],
    batch_size: int,
    precision: str,
    device: Device,
    end: float,
    deadline: float,
) -> list[Row]:
    """Measure until `end`, with as many rounds as quartiles need; at the deadline, any number will do."""
    images = random_images(batch_size, precision, device)
    calls: dict[tuple[int, str], Call] = {
        (one.split, way): call for one in members for way, call in make_ways(one, images, device).items()
    }
    names = {one.split: one.name for one in members}
    milliseconds: dict[tuple[int, str], list[float]] = {key: [] for key in calls}
    gc.collect()
    gc.disable()
    for index in range(MOST_ROUNDS):
        for key, call in calls.items():
            call()
            milliseconds[key] += [_time(call, device) for _ in range(BURST)]
        now = time.monotonic()
        if now > deadline or (now > end and index + 1 >= LEAST_ROUNDS):
            break
    gc.enable()
    rows = []
    for (split, way), times in milliseconds.items():
        first, _, third = quantiles(times, n=4)
        # Copied, since the next replay of a graph overwrites it.
        reference = calls[split, IN_TURN]().clone()
        difference = (calls[split, way]() - reference).abs().max().item()
        rows.append(
            {
                "split": split,
                "members": names[split],
                "way": way,
                "runs": len(times),
                "ms": {"q1": first, "median": median(times), "q3": third},
                "difference": difference,
            }
        )
    return rows


def summarise(rows: Sequence[Mapping[str, Any]]) -> list[Row]:
    """Return for every network, precision, batch size and split how much faster members at once are.

    `over_in_turn` compares with the same members' fastest way in turn, `over_undivided` with the undivided
    network's fastest. A case whose rows were cut off before these is left out.
    """
    keys = ("network", "precision", "batch_size")
    cases: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
    for row in rows:
        cases.setdefault(tuple(row[key] for key in keys), []).append(row)
    summary = []
    for case, of_case in cases.items():
        undivided = _fastest([row for row in of_case if row["split"] == 1])
        for split in sorted({row["split"] for row in of_case} - {1}):
            divided = [row for row in of_case if row["split"] == split]
            in_turn = _fastest([row for row in divided if row["way"] in SERIAL])
            at_once = _fastest([row for row in divided if row["way"] not in SERIAL])
            if in_turn is None or at_once is None:
                continue
            line: Row = dict(zip(keys, case, strict=True)) | {"split": split, "way": at_once["way"]}
            line["over_in_turn"] = in_turn["ms"]["median"] / at_once["ms"]["median"]
            if undivided is not None:
                line["over_undivided"] = undivided["ms"]["median"] / at_once["ms"]["median"]
            summary.append(line)
    return summary


def _fastest(rows: Sequence[Mapping[str, Any]]) -> Any:
    """Return the row with the least median; None without rows."""
    return min(rows, key=lambda row: row["ms"]["median"], default=None)


def _time(call: Call, device: Device) -> float:
    device.wait()
    start = time.perf_counter()
    call()
    device.wait()
    return (time.perf_counter() - start) * 1e3
