"""A folder of images, one sub-folder a class: read, checked and split."""
