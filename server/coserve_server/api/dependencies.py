"""What the routes of all APIs take from a request."""

from typing import Annotated

from fastapi import Depends, Header, Request

from coserve_server.classify import Classifier


# Asynchronous, since others are called on a thread.
async def _classifier(request: Request) -> Classifier:
    classifier: Classifier = request.app.state.classifier
    return classifier


Core = Annotated[Classifier, Depends(_classifier)]

Timeout = Annotated[
    float | None,
    Header(
        alias="Request-Timeout-Ms",
        gt=0,
        allow_inf_nan=False,
        description="Milliseconds the answer may take from the complete body on; the server's own deadline, "
        "where that is shorter.",
    ),
]
