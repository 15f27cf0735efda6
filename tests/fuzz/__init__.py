"""Fuzzers: commands that send malformed events and images to the service."""

import training  # noqa: F401 - first, since it explains missing packages
