"""What never goes into the image: the data set, the network, its checkpoints."""

from training.environment import explain_missing_packages

explain_missing_packages()

from training import streams  # noqa: E402 - only once it is known that Python is new enough

streams.prepare()  # before a command imports TensorFlow, which needs standard error
