"""From a Keras model to the bytes of a .tflite file, its class names inside."""

import contextlib
import io
import zipfile

from serving.classifier import LABELS_FILE
from training.backend import stderr_held_back, tf


def convert_quietly(converter: "tf.lite.TFLiteConverter") -> bytes:
    """Return the flatbuffer that `converter` makes, without the few hundred lines it prints."""
    with stderr_held_back(), contextlib.redirect_stdout(io.StringIO()):
        return converter.convert()


def labels_archive(class_names: tuple[str, ...]) -> bytes:
    """Return the zip archive with the class names that is appended to the flatbuffer.

    It is TFLite Metadata's way of an associated file: runtimes ignore it, zipfile finds it.
    """
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        # A fixed date, so that the same checkpoint gives the same file.
        archive.writestr(zipfile.ZipInfo(LABELS_FILE), "\n".join(class_names) + "\n")
    return buffer.getvalue()
