"""Errors that a caller may read: one sentence each, without a path or an address of ours."""


class ServingError(Exception):
    """Something the caller, the picture or its host did; `str(error)` is one sentence.

    The class name is the error's type in the service's answer.
    """


class InvalidRequestError(ServingError):
    """The event holds no picture and no usable address of one."""


class FetchError(ServingError):
    """The picture's host could not be reached, was too slow or answered with an error."""


class TooLargeError(ServingError):
    """More bytes or more pixels than the service reads."""


class ImageError(ServingError):
    """The bytes are no picture of a supported format, or a broken one."""


class InternalError(ServingError):
    """A defect of ours; the log has the details."""


def as_answer(error: ServingError) -> dict:
    """Return `error` as the service answers it: `{"error": {"type": ..., "message": ...}}`."""
    return {"error": {"type": type(error).__name__, "message": str(error)}}
