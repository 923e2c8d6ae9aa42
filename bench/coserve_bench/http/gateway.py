"""Checks a server before it is measured, and describes the requests to it."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlencode

from coserve_bench.errors import BenchError
from coserve_bench.http.images import EncodedImage
from coserve_bench.http.loads import Target
from coserve_client import Client, Image, RejectedError, Reply
from coserve_client.connecting import Certificate
from coserve_client.environment import find_api_key


@dataclass(frozen=True)
class Access:
    """How to reach a server; the fields are those of `coserve_client.Client`."""

    url: str
    api_key: str | None = None
    verify: Path | None = None
    certificate: Certificate = None


def first_reply(access: Access, model: str | None, images: Sequence[EncodedImage], timeout_s: float) -> Reply:
    """Classify every image once, and return the reply for the first.

    Raises:
        BenchError: the server rejects an image.
        CoserveError: the server cannot be reached, is not ready, times out, or does not have the ensemble.
    """
    with Client(
        access.url,
        api_key=access.api_key,
        verify=access.verify,
        certificate=access.certificate,
        timeout=timeout_s,
        retries=0,
    ) as client:
        first, *_ = [_classify(client, image, model) for image in images]
    return first


def _classify(client: Client, image: EncodedImage, model: str | None) -> Reply:
    try:
        return client.classify(Image(image.data, Path(image.name).name), model=model)
    except RejectedError as error:
        raise BenchError(f"{image.name} cannot be used: {error}") from error


def classification(access: Access, model: str, images: Sequence[EncodedImage], timeout_s: float) -> Target:
    """Return requests that each classify one image, with the image file as the body."""
    key = find_api_key(access.api_key)
    return Target(
        f"{access.url.strip().rstrip('/')}/v1/classify?{urlencode({'model': model})}",
        [(image.kind, image.data) for image in images],
        {"X-API-Key": key} if key else {},
        access.verify,
        access.certificate,
        timeout_s,
    )
