"""Speed and memory, as ratios measured side by side in one run."""

from training import environment  # noqa: F401 - first, since its package explains missing ones
