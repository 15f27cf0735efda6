"""From a checkpoint to the files that are served or published."""
