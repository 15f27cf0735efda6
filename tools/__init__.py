"""What the Makefile calls: set up, lock, and try the whole path."""
