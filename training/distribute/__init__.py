"""Train as one over all GPUs of a machine, and over the processes of several machines.

Keras does it on JAX: every process runs the same script, holds a copy of the weights and computes
its rows of each batch; gradients are averaged over all of them after each step. Only process 0,
the main process, prints, writes files and restores runs.
"""

from training.distribute.cluster import Flags, add_flags, read_flags
from training.distribute.launcher import relaunch
from training.distribute.workers import Workers, initialize

__all__ = ["Flags", "Workers", "add_flags", "initialize", "read_flags", "relaunch"]
