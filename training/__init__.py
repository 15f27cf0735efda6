"""What never goes into the image: the data set, the network, its checkpoints."""

from training import streams

streams.prepare()  # before a command imports TensorFlow, which needs standard error
