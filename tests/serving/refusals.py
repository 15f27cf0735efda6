"""What tests of expensive images share."""

import time

import pytest

from serving.errors import TooLargeError
from serving.image import open_image

SECONDS = 0.5  # of CPU time, for a file that is refused before it is decoded


def refusal(data, error=TooLargeError):
    """Return the sentence with which the image `data` is refused, at once."""
    started = time.process_time()
    with pytest.raises(error) as caught:
        open_image(data)
    assert time.process_time() - started < SECONDS
    return str(caught.value)
