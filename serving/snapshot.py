"""Prepares the service for a snapshot of it, and renews what its copies may not share.

With SnapStart, AWS Lambda starts a version of the function once, takes a snapshot of its memory and
processes, and begins each execution environment from that. Before the snapshot, the service does
what a first request would wait for; after a restore, it draws new seeds and replaces a decoder that
does not answer. Nothing else has to be renewed:

- Deadlines are measured from the beginning of each invocation (serving/handler.py), CPU time from
  that of each image (serving/decoder_process.py).
- Names of temporary files, requests' IDs and TLS ask the system for random bytes each time; only
  the seed of Python's hashes is that of the snapshot in all copies.
- Each fetch has connections of its own and looks names up anew. Those to buckets are closed before.
- The first request of a copy is one after a cold start to the log, since none came before.
"""

import contextlib
import io
import os
import random
import sys
import time

import numpy as np
from PIL import Image

from serving.decoder import CpuLimitError
from serving.errors import ServingError
from serving.fetch import INITIALIZATION
from serving.preprocess import scale
from serving.resources import decoding_memory
from serving.service import Service

SNAP_START = "snap-start"  # value of INITIALIZATION
CHECK_S = 5.0  # seconds for the decoder to answer after a restore, which may take 10


def register(service: Service) -> None:
    """Let AWS's runtime prepare and renew `service`, if the function is one with SnapStart."""
    if os.environ.get(INITIALIZATION) != SNAP_START:
        return
    try:
        from snapshot_restore_py import register_after_restore, register_before_snapshot
    except ModuleNotFoundError:  # another runtime than AWS's, which would call nothing
        return
    register_before_snapshot(prepare, service)
    register_after_restore(renew, service)


def prepare(service: Service) -> None:
    """Do what a first request would wait for, and close connections.

    Raises:
        ServingError: the decoder or the model fails, so this version can answer nothing.
    """
    import python_multipart.multipart  # noqa: F401 - for the first form

    from serving import object_tags, shards, stores  # noqa: F401 - for images of a bucket
    from serving.page import read_page

    service.classifier.predict(_decode_blank(service))
    service.health()
    read_page()
    stores.connect.cache_clear()
    object_tags.close_connections()


def renew(service: Service) -> None:
    """Draw new seeds, and replace the decoder's process if it does not answer."""
    random.seed()
    if numpy_random := sys.modules.get("numpy.random"):  # imported by some runtimes only
        numpy_random.seed()
    with contextlib.suppress(ServingError, CpuLimitError):  # then there is another process
        _decode_blank(service)


def _decode_blank(service: Service) -> np.ndarray:
    """Return a drawn image as the model's input, float32 (1, height, width, 3), -1 to 1."""
    image = io.BytesIO()
    Image.new("RGB", (64, 64)).save(image, "JPEG")
    decoded = service.decoder.decode(
        image.getvalue(),
        service.classifier.input_size,
        memory=decoding_memory(),
        deadline=time.monotonic() + CHECK_S,
    )
    return scale(decoded.pixels)[np.newaxis]
