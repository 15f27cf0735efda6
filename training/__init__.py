"""What never goes into the image: the data set, the network, its checkpoints."""

from training.environment import explain_missing_packages

explain_missing_packages()
