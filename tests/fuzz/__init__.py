"""Fuzzers: commands that make, without end, what nobody meant to send."""
