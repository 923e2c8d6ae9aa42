"""What `coserve classify` prints."""

import json
import sys
from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from rich.progress import Progress

    from coserve_client import Outcome, Prediction, Reply, Result


def progress_bar(visible: bool) -> "Progress":
    """Return a progress bar on stderr, for terminals only."""
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True, force_terminal=sys.stderr.isatty())
    return Progress(
        console=console,
        transient=True,
        redirect_stdout=False,
        redirect_stderr=False,
        disable=not (visible and console.is_interactive),
    )


@dataclass
class Report:
    """Prints outcomes as they arrive: results on stdout, errors on stderr.

    Attributes:
        as_json: whether to print JSON.
        member_predictions: whether to print the members' predictions, if the reply has them.
        width: columns for the images' names.
        images: images that were classified.
        answers: members that answered, summed over the images.
        stops: whether images of some reply needed no further member.
    """

    as_json: bool
    member_predictions: bool
    width: int
    failed: int = 0
    replies: int = 0
    degraded: int = 0
    overlaps: float = 0.0
    images: int = 0
    answers: int = 0
    stops: bool = False
    missing: dict[str, str | None] = field(default_factory=dict)
    last: "Reply | None" = None

    def add(self, name: str, outcome: "Outcome") -> None:
        """Print an outcome."""
        from coserve_client import InputError

        if outcome.result is None or outcome.reply is None:
            self.failed += 1
            # An InputError already names the file.
            prefix = "" if isinstance(outcome.error, InputError) else f"{name}: "
            typer.echo(f"error: {prefix}{outcome.error}", err=True)
            return
        self._count(outcome.reply)
        result = outcome.result
        self.images += 1
        self.answers += _answered(result, outcome.reply)
        if not self.member_predictions:
            result = replace(result, member_predictions=None)
        if self.as_json:
            typer.echo(_json(name, result, outcome.reply))
            return
        for line in self._lines(name, result, outcome.reply):
            typer.echo(line)

    def _count(self, reply: "Reply") -> None:
        """Count a reply once; its images follow each other."""
        if reply is self.last:
            return
        self.last = reply
        self.replies += 1
        self.degraded += reply.degraded
        self.stops = self.stops or reply.early_stopping is not None
        self.overlaps += reply.overlap
        self.missing |= {member.name: member.error for member in reply.missing}

    def _lines(self, name: str, result: "Result", reply: "Reply") -> Iterator[str]:
        answered = _answered(result, reply)
        all_members = len(reply.members)
        note = f"  ({answered} of {all_members} members)" if answered < all_members else ""
        yield f"{name:<{self.width}}  {_percentages(result.predictions)}{note}"
        for member, predictions in (result.member_predictions or {}).items():
            yield f"{'  ' + member:<{self.width}}  {_percentages(predictions)}"
        if reply.prediction_sets:
            title = f"  {100 * reply.prediction_sets.coverage:g}% set"
            yield f"{title:<{self.width}}  {_describe_set(result, reply)}"

    def finish(self) -> None:
        """Print a summary of all replies."""
        if self.last and not self.as_json:
            count = len(self.last.members)
            per_image = f"{self.answers / self.images:.2f} per image, " if self.stops else ""
            typer.echo(
                f"{self.last.model} version {self.last.version}: {count} member{'s' * (count > 1)}, "
                f"{per_image}overlap {self.overlaps / self.replies:.2f}"
            )
        if self.degraded:
            members = ", ".join(
                f"{name} ({error or 'no reason given'})" for name, error in self.missing.items()
            )
            typer.echo(
                f"warning: {self.degraded} of {self.replies} replies lack members: {members}", err=True
            )


def _percentages(predictions: "Collection[Prediction]") -> str:
    """List predictions. Labels that several of them have are followed by the class index."""
    count = Counter(prediction.label for prediction in predictions)
    return "  ".join(
        f"{one.label}{f' (class {one.class_id})' if count[one.label] > 1 else ''} {one.probability:.1%}"
        for one in predictions
    )


def _answered(result: "Result", reply: "Reply") -> int:
    """Return how many members answered an image."""
    # Older servers do not list them; the same members answered all images.
    if result.members is None:
        return len(reply.members) - len(reply.missing)
    return len(result.members)


def _describe_set(result: "Result", reply: "Reply") -> str:
    if result.prediction_set is None:
        return f"not calibrated for answers of {_answered(result, reply)} of {len(reply.members)} members"
    return _percentages(result.prediction_set) or "empty: no class is probable enough"


def _json(name: str, result: "Result", reply: "Reply") -> str:
    content = asdict(result)
    del content["filename"]
    reply_fields = {
        "model": reply.model,
        "version": reply.version,
        "degraded": reply.degraded,
        "missing": [member.name for member in reply.missing],
        "overlap": reply.overlap,
        "prediction_sets": asdict(reply.prediction_sets) if reply.prediction_sets else None,
        "early_stopping": asdict(reply.early_stopping) if reply.early_stopping else None,
        "measured_top1": reply.measured_top1,
        "ensemble_members": len(reply.members),
    }
    return json.dumps({"file": name, **reply_fields, **content})
