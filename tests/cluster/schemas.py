"""Kubernetes' own schemas, which kubernetes-validate brings."""

import functools
import sys
from typing import Any

from tests.cluster.chart import TOOLS

VERSIONS = [f"1.{minor}" for minor in range(27, 38)]
"""From the chart's oldest to the newest that kubernetes-validate has."""
OTHERS = {"HTTPRoute", "ScaledObject", "ServiceMonitor"}
"""Kinds that are not Kubernetes' own."""


@functools.cache
def _tool() -> Any:
    sys.path.append(str(TOOLS))
    import kubernetes_validate
    from kubernetes_validate import utils

    # It would read two megabytes for each object.
    utils.schema_contents = functools.cache(utils.schema_contents)
    return kubernetes_validate


def fault(thing: dict[str, Any], version: str) -> str | None:
    """Return what a version of Kubernetes objects to in an object of its own, unknown fields included."""
    try:
        validated = _tool().validate(thing, version, strict=True)
    except (_tool().ValidationError, _tool().SchemaNotFoundError) as error:
        return f"{thing['kind']} in {version}: {error.message}"
    assert validated == version
    return None
