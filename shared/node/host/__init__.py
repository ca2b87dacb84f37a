"""The machine that a node runs on, in the node's metrics: processors, memory, disk, network and NVIDIA GPUs."""

from shared.node.host.host_metrics import Host

__all__ = ["Host"]
