"""What goes into the image: from an event to named scores, without TensorFlow."""
