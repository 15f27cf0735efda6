"""What never goes into the image: the data set, the network, its checkpoints."""
