"""Explore the data, compare networks, and tune the best one."""

import training  # noqa: F401 - first, since it explains missing packages
