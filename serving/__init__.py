"""The service inside the container image, without TensorFlow."""
