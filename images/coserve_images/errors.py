"""The errors of decoding.

ImageError
  + UnknownFormatError   the data is not an image in a supported format
LateError                decoding was stopped at its deadline
"""


class ImageError(Exception):
    """An image cannot be decoded, or is larger than allowed; the text is one line for a user."""


class UnknownFormatError(ImageError):
    """The data is not an image in a supported format."""


class LateError(Exception):
    """Decoding was stopped because its deadline had passed."""
