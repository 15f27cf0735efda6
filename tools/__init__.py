"""What the Makefile calls: set up, lock, and try the whole path."""

import training  # noqa: F401 - first, since it explains missing packages
