"""Speed and memory, as ratios measured side by side in one run."""

import training  # noqa: F401 - first, since it explains missing packages
