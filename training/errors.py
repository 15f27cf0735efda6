"""What can be wrong with the data, the disk or the machines; each is one sentence to a person."""


class DataError(Exception):
    """The folder of images is not usable; `str(error)` says what to do."""


class CacheError(Exception):
    """There is no room for the cache; `str(error)` says what to do."""


class DistributeError(Exception):
    """The processes cannot train as one; `str(error)` says what to do."""
