"""Errors that a caller may read: one sentence each, without a path or an address of ours."""


class ServingError(Exception):
    """Something the caller, the image or its host did; `str(error)` is one sentence.

    The class name is the error's type in the service's answer, `status` its HTTP status code.
    """

    status = 500


class InvalidRequestError(ServingError):
    """The event holds no image and no usable address of one."""

    status = 400


class AddressError(ServingError):
    """The address leads to where the service fetches nothing: it may not be asked for."""

    status = 400


class NotFoundError(ServingError):
    """There is nothing at this path."""

    status = 404


class MethodError(ServingError):
    """There is something at this path, for other methods."""

    status = 405


class TooLargeError(ServingError):
    """More bytes or more pixels than the service reads."""

    status = 413


class UnsupportedTypeError(ServingError):
    """A request's body or an image is of a type that the service does not read."""

    status = 415


class ImageError(ServingError):
    """The image breaks off or is damaged."""

    status = 422


class InternalError(ServingError):
    """A defect of ours; the log has the details."""

    status = 500


class FetchError(ServingError):
    """The image's host could not be reached, or answered with an error."""

    status = 502


class FetchTimeoutError(FetchError):
    """The image's host was too slow."""

    status = 504


class DeadlineError(ServingError):
    """The invocation's time ran out before this image's turn."""

    status = 504


def error_body(error: ServingError) -> dict:
    """Return `error` as the service answers it: `{"error": {"type": ..., "message": ...}}`."""
    return {"error": {"type": type(error).__name__, "message": str(error)}}


class ModelError(Exception):
    """A model file is missing or unusable; `str(error)` says what to do."""
