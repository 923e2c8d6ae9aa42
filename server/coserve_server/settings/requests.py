"""How requests are answered, and their limits."""

from pydantic import Field, model_validator

from coserve_images.bounds import MAX_PIXELS
from coserve_server.settings.section import Milliseconds, Section


class RequestSettings(Section):
    """How requests are answered, and their limits."""

    default_model: str | None = None
    """Ensemble for requests that name none; if only one ensemble is served, it is the default."""
    min_members: int | None = Field(None, ge=1)
    """Quorum: the number of members that must answer a request; by default, and in smaller ensembles, all."""
    deadline_ms: Milliseconds = Field(10_000, gt=0)
    """Time limit for decoding, queueing and inference of a request; the request's header can shorten it."""
    upload_timeout_ms: Milliseconds = Field(60_000, gt=0)
    """Time limit for receiving a request's body."""
    min_upload_rate: int = Field(1000, ge=0)
    """Minimum average rate of an upload, in bytes/s, after a grace period of 5 s; 0 for no minimum."""
    head_timeout_ms: Milliseconds = Field(10_000, gt=0)
    """Time limit for receiving a request's headers, and for the first bytes of a new connection."""
    idle_timeout_ms: Milliseconds = Field(75_000, gt=0)
    """Time after which a connection without requests is closed; choose more than a proxy's or load
    balancer's, which is often 60 s."""
    max_connections: int = Field(1000, ge=1)
    """Limit on open connections; idle ones are closed to make room, and further ones are refused, except for
    health checks."""
    max_connection_age_ms: Milliseconds = Field(0, ge=0)
    """Age, give or take a tenth, at which a connection ends with its next response, so that clients spread
    over replicas; 0 for no limit."""
    max_requests: int = Field(64, ge=1)
    """Limit on concurrent classification requests, counted before their bodies are read; more are refused."""
    max_body_bytes: int = Field(32 * 2**20, ge=1)
    """Limit on the bytes in a request's body."""
    max_images: int = Field(64, ge=1)
    """Limit on the images in a request."""
    max_predictions: int = Field(100_000, ge=1)
    """Limit on the predictions in an answer: images times classes requested, the same for each member whose
    own predictions are requested, and all classes of each image if prediction sets are."""
    max_pixels: int = Field(50_000_000, ge=1, le=MAX_PIXELS)
    """Limit on the pixels of an image, checked in its header before decoding and again before resizing."""
    max_request_pixels: int = Field(250_000_000, ge=1)
    """Limit on the pixels of all images in a request, checked in their headers before any is decoded; at
    least `max_pixels`."""
    max_magnitude: float = Field(10_000, ge=0)
    """Limit on the magnitude of values in tensors over `/v2` and gRPC; 0 for none. They must be finite."""
    announce_files: bool = False
    """Whether models over `/v2` and gRPC describe their input as image files (BYTES), not as tensors (FP32);
    they take both in any case."""
    serve_members: bool = False
    """Whether requests may also name a single member, to run it alone."""
    page: bool = True
    """Whether browsers get a page at `/` on which people can try the server; without it they get JSON."""

    @model_validator(mode="after")
    def _check_pixels(self) -> "RequestSettings":
        if self.max_request_pixels < self.max_pixels:
            raise ValueError(
                f"max_request_pixels: {self.max_request_pixels} is less than the {self.max_pixels} that "
                "max_pixels allows for one image"
            )
        return self
