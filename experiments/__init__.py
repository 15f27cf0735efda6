"""Explore the data, compare networks, and tune the best one."""
