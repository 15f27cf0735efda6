"""Fuzzers: commands that send malformed events and images to the service."""
