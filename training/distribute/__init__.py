"""Training over several GPUs or machines."""
