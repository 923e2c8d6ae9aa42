"""Engines whose members answer what a test says, and an image to ask them about."""

import asyncio
import io
import time
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from PIL import Image

from coserve_server.engines.base import Batch, Images, as_array
from coserve_server.ensembles.accuracy import Accuracy
from coserve_server.ensembles.ensemble import Ensemble, Member
from coserve_server.ensembles.preprocessing import Preprocessing
from coserve_server.observability.record import Record
from coserve_server.outcomes import Failure, MemberRun, Place


def png(colour: str = "red") -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (4, 4), colour).save(file, "PNG")
    return file.getvalue()


def ensemble(
    members: int = 2, max_batch_size: int = 2, name: str = "pair", accuracy: Accuracy | None = None
) -> Ensemble:
    return Ensemble(
        name=name,
        version="1",
        max_batch_size=max_batch_size,
        input_name="images",
        output_name="logits",
        members=tuple(Member(f"m{i}", None, "images", "logits", 1.0) for i in range(members)),
        preprocessing=Preprocessing(
            height=4,
            width=4,
            resize_size=4,
            interpolation="bilinear",
            mean=(0, 0, 0),
            std=(1, 1, 1),
        ),
        labels=("cat", "dog"),
        provenance={},
        accuracy=accuracy or Accuracy(),
    )


def run(start_ms: float, end_ms: float, *rows: Sequence[float], error: str | None = None) -> MemberRun:
    """A member's run with logits `rows`, or with an error."""
    logits = None if error else np.array(rows, np.float32)
    failure = Failure("failed", error) if error else None
    return MemberRun("", "fake", int(start_ms * 1e6), int(end_ms * 1e6), logits, failure)


class FakeEngine:
    """Answers one script per batch; None in it stands for a member that never answers."""

    def __init__(self, *ensembles: Ensemble, scripts: Sequence[Sequence[MemberRun | None]] = ()) -> None:
        self.ensembles = {one.name: one for one in ensembles}
        self.scripts = iter(scripts)
        self.given: list[Images] = []
        self.records: list[list[Record]] = []
        self.futures: list[asyncio.Future[MemberRun]] = []
        self.ready = True
        self.missing: str | None = None
        self.load_errors: dict[str, str] = {}

    def versions(self, name: str) -> Sequence[Ensemble]:
        return [self.ensembles[name]] if name in self.ensembles else []

    def ready_members(self, ensemble: Ensemble) -> frozenset[str]:
        return frozenset(member.name for member in ensemble.members if self.ready)

    def faults(self) -> list[str]:
        return [self.missing] if self.missing else []

    def why_missing(self, name: str | None) -> str | None:
        return self.missing

    def describe(self, ensemble: Ensemble) -> str:
        return "fake"

    def batches(self, ensemble: Ensemble) -> bool:
        return False

    def places(self, ensemble: Ensemble) -> Sequence[Place]:
        return [Place(cores=frozenset({0}))]

    def lanes(self, ensemble: Ensemble) -> int:
        return min(2, len(ensemble.members))

    def start(
        self, ensemble: Ensemble, images: Images | Batch, records: Sequence[Record] = (), copy: int = 0
    ) -> "list[asyncio.Future[MemberRun]]":
        self.given.append(as_array(images))
        self.records.append(list(records))
        futures = []
        script = next(self.scripts, None)
        if script is None:
            raise RuntimeError("the test has no script for this batch")
        for member, answer in zip(ensemble.members, script, strict=True):
            future: asyncio.Future[MemberRun] = asyncio.get_running_loop().create_future()
            if answer is not None:
                future.set_result(replace(answer, name=member.name))
            futures.append(future)
        self.futures.extend(futures)
        return futures

    async def close(self) -> None:
        self.ready = False


class ReadingEngine(FakeEngine):
    """Its members give the first and the last value of each image, plus their index; `broken` ones fail."""

    def __init__(self, *ensembles: Ensemble, broken: Sequence[str] = ()) -> None:
        super().__init__(*ensembles)
        self.broken = broken

    def start(
        self, ensemble: Ensemble, images: Images | Batch, records: Sequence[Record] = (), copy: int = 0
    ) -> "list[asyncio.Future[MemberRun]]":
        self.given.append(as_array(images))
        self.records.append(list(records))
        futures = []
        for member in ensemble.members:
            index = ensemble.whole.members.index(member)
            start = time.perf_counter_ns()
            logits = (
                None if member.name in self.broken else self.given[-1][:, [0, -1], [0, -1], [0, -1]] + index
            )
            end = time.perf_counter_ns()
            failure = Failure("failed", "broke") if logits is None else None
            future: asyncio.Future[MemberRun] = asyncio.get_running_loop().create_future()
            future.set_result(MemberRun(member.name, "fake", start, end, logits, failure))
            futures.append(future)
        return futures


class BuggyEngine(FakeEngine):
    """Fails in a way nobody foresaw."""

    def start(
        self, ensemble: Ensemble, images: Images | Batch, records: Sequence[Record] = (), copy: int = 0
    ) -> "list[asyncio.Future[MemberRun]]":
        raise RuntimeError("secret: /etc/passwd")
