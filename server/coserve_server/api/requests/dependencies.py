"""What the routes of all APIs take from a request."""

from typing import Annotated

from fastapi import Depends, Request

from coserve_server.pipeline.classifier import Classifier


def classifier(request: Request) -> Classifier:
    """The classifier of the application."""
    found: Classifier = request.app.state.classifier
    return found


# Asynchronous, since others are called on a thread.
async def _classifier(request: Request) -> Classifier:
    return classifier(request)


Core = Annotated[Classifier, Depends(_classifier)]

TIMEOUT = "Request-Timeout-Ms"
TIMEOUT_DESCRIPTION = (
    "Milliseconds the answer may take from the complete body on; the server's own deadline, "
    "where that is shorter."
)
