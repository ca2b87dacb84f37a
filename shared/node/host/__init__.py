"""Metrics of the machine that a node runs on: processors, memory, disk, network and NVIDIA GPUs."""
