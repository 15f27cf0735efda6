"""Errors whose message is a sentence for people.

    UserError                      printed by training/cli.py, with exit code 1
    ├── ServingError               returned to callers, without our paths or addresses
    │   ├── InvalidRequestError    400
    │   ├── AddressError           400
    │   ├── NotFoundError          404
    │   ├── MethodError            405
    │   ├── TooLargeError          413
    │   ├── UnsupportedTypeError   415
    │   ├── ImageError             422
    │   ├── InternalError          500
    │   ├── FetchError             502
    │   │   └── FetchTimeoutError  504
    │   └── DeadlineError          504
    ├── ModelError                 a model file, or the runtime for it
    ├── AllowError                 FETCH_ALLOW (serving/addresses.py)
    ├── SettingError               another environment variable
    ├── EventSourceError           an event of another AWS service; fails the invocation
    ├── StoreError                 a folder or bucket that cannot be used; nothing is answered
    └── DataError, CacheError, TrainingError, DistributeError, DownloadError: training/errors.py

Commands add their own subclasses of `UserError`: an emulator that does not start, for example.
"""


class UserError(Exception):
    """Something the user can fix; `str(error)` says how in one sentence."""


class ServingError(UserError):
    """A problem with the request, the image or its host.

    Responses contain the class name as the error's type. `status` is the HTTP status code.
    """

    status = 500


class InvalidRequestError(ServingError):
    """The event contains neither an image nor a usable URL."""

    status = 400


class AddressError(ServingError):
    """The service does not connect to the URL's address."""

    status = 400


class NotFoundError(ServingError):
    """No page has this path."""

    status = 404


class MethodError(ServingError):
    """The path needs another HTTP method."""

    status = 405


class TooLargeError(ServingError):
    """The image has more bytes or pixels than the service accepts."""

    status = 413


class UnsupportedTypeError(ServingError):
    """The request body or the image has an unsupported type."""

    status = 415


class ImageError(ServingError):
    """The image is truncated or damaged."""

    status = 422


class InternalError(ServingError):
    """An unexpected error of the service; the log has the details."""

    status = 500


class FetchError(ServingError):
    """The image's host could not be reached or answered with an error."""

    status = 502


class FetchTimeoutError(FetchError):
    """The image's host was too slow."""

    status = 504


class DeadlineError(ServingError):
    """The invocation's time ran out before this image's turn."""

    status = 504


class ModelError(UserError):
    """A model file is missing or unusable; `str(error)` says what to do."""


class SettingError(UserError):
    """An environment variable is malformed; `str(error)` says which and what to do."""


class EventSourceError(UserError):
    """An AWS service sent an event of its own.

    It fails the invocation, so that AWS retries it and hands it to the dead-letter queue.
    """


class StoreError(UserError):
    """A folder or bucket cannot be read or written; `str(error)` says what to do."""


def error_body(error: ServingError) -> dict:
    """Return `error` as JSON: {"error": {"type": ..., "message": ...}}."""
    return {"error": {"type": type(error).__name__, "message": str(error)}}
