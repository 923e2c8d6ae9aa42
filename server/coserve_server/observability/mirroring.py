"""Counts what mirroring did, and how the mirror's answers compare with the clients'."""

from collections import Counter, defaultdict
from dataclasses import dataclass, field

from coserve_server.observability.metrics import SHORT_S, Histogram


@dataclass
class Comparison:
    """The mirror beside one version of an ensemble; both got the same images.

    Attributes:
        outcomes: requests by `answered`, `failed`, `busy` (dropped for clients' requests), `incomparable`
            (other labels or preprocessing) or `missing` (the mirror is not served).
        images: images that both answered.
        agreements: images of those with the same most probable class.
        answer: seconds that the clients' ensemble had the images.
        mirror: seconds that the mirror had them.
    """

    outcomes: Counter[str] = field(default_factory=Counter)
    images: int = 0
    agreements: int = 0
    answer: Histogram = field(default_factory=lambda: Histogram(SHORT_S))
    mirror: Histogram = field(default_factory=lambda: Histogram(SHORT_S))


Comparisons = defaultdict[tuple[str, str], Comparison]
"""By name and version of the clients' ensemble."""
