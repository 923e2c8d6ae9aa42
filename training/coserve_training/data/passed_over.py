"""Count and name what a data set holds besides the images that are taken."""

from collections import Counter
from dataclasses import dataclass, field
from pathlib import PurePosixPath

LITTER = frozenset(
    {"@eadir", "#recycle", "#snapshot", "@recycle", "$recycle.bin", "system volume information", "lost+found"}
    | {"thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r", "__pycache__", "network trash folder"}
    | {"temporary items", "~snapshot", "@tmp"}
)
"""Names, in lower case, of entries that systems and devices leave behind. Their content is never read."""
NAMED = 6
"""Largest number of suffixes, depths or names that a summary lists."""


def is_litter(name: str) -> bool:
    """Return whether an entry is hidden, or left behind by a system."""
    return name.startswith((".", "__MACOSX")) or name.casefold() in LITTER


@dataclass
class PassedOver:
    """What was not taken from one folder or zip.

    Attributes:
        where: the folder or zip.
        suffixes: files that are no images by their suffix, by suffix.
        depths: images outside class folders, by the number of folders above them.
        litter: hidden entries and those of systems, by name.
        others: other entries, by kind.
        nested: images that lie deeper than their class folder; they are taken.
    """

    where: str
    suffixes: Counter[str] = field(default_factory=Counter)
    depths: Counter[str] = field(default_factory=Counter)
    litter: Counter[str] = field(default_factory=Counter)
    others: Counter[str] = field(default_factory=Counter)
    nested: int = 0

    def add_file(self, name: str) -> None:
        """Count a file that is no image by its suffix."""
        self.suffixes[PurePosixPath(name).suffix.lower() or "without a suffix"] += 1

    def add_misplaced(self, depth: int) -> None:
        """Count an image outside the class folders."""
        self.depths[f"at depth {depth}"] += 1

    def summary(self) -> str:
        """Summarise in one line what is not taken; return an empty string if everything is."""
        parts = []
        if self.suffixes:
            parts.append(
                f"{_count(self.suffixes, 'file')} without an image's suffix ({_list(self.suffixes)})"
            )
        if self.depths:
            parts.append(f"{_count(self.depths, 'image')} outside class folders ({_list(self.depths)})")
        if self.litter:
            parts.append(f"{_count(self.litter, 'hidden or system entr', 'y', 'ies')} ({_list(self.litter)})")
        parts += [f"{count} {kind}" for kind, count in self.others.most_common()]
        return "; ".join(parts)

    def lines(self) -> list[str]:
        """Return what to report: what is not taken, and images that lie deeper than expected."""
        lines = []
        if summary := self.summary():
            lines.append(f"{self.where}: not taken: {summary}")
        if self.nested:
            lines.append(
                f"{self.where}: {self.nested} images lie in subfolders of class folders, and are taken"
            )
        return lines


def _count(counter: Counter[str], noun: str, one: str = "", many: str = "s") -> str:
    total = counter.total()
    return f"{total} {noun}{one if total == 1 else many}"


def _list(counter: Counter[str]) -> str:
    ordered = sorted(counter.items(), key=lambda item: (-item[1], item[0]))
    listed = [f"{count} {name if name.isprintable() else ascii(name)}" for name, count in ordered[:NAMED]]
    if len(ordered) > NAMED:
        listed.append(f"{sum(count for _, count in ordered[NAMED:])} others")
    return ", ".join(listed)
