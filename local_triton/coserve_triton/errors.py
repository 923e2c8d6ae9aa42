"""The error of running a local Triton server."""


class TritonError(Exception):
    """Triton's server is not installed, cannot run as asked, or has ended; the text is fit for a user."""
