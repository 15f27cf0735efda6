"""Errors about data, disk and machines; the whole tree is drawn in serving/errors.py."""

from serving.errors import UserError


class DataError(UserError):
    """The folder of images, or a list of some of them, is not usable."""


class CacheError(UserError):
    """The disk has no room for the cache of features."""


class TrainingError(UserError):
    """Training came to nothing, such as a loss that is not a number."""


class DistributeError(UserError):
    """The processes cannot train as one."""


class DownloadError(UserError):
    """The images could not be downloaded."""
