"""Declare the metrics of the machine that a node runs on; part of the instrument list.

Every node on a machine reports the machine's figures with the same ``machine`` label, so ``max by (machine)`` counts each machine once.
"""

from shared.telemetry.instrument import Instrument, counter, gauge

HOST_CPU = gauge("ai_platform_host_cpu_usage_ratio", "CPU usage of the machine since the previous collection, from 0 to 1", ("machine",))
HOST_MEMORY_USED = gauge(
    "ai_platform_host_memory_used_bytes", "Memory of the machine that is not available to programs", ("machine",), unit="bytes"
)
HOST_MEMORY_TOTAL = gauge("ai_platform_host_memory_total_bytes", "Total memory of the machine", ("machine",), unit="bytes")
HOST_DISK_FREE = gauge(
    "ai_platform_host_disk_free_bytes", "Free space on the disk that holds the node's files", ("machine", "disk"), unit="bytes"
)
HOST_DISK_TOTAL = gauge(
    "ai_platform_host_disk_total_bytes", "Size of the disk that holds the node's files", ("machine", "disk"), unit="bytes"
)
HOST_DISK_READ = counter("ai_platform_host_disk_read_bytes_total", "Bytes read from all disks of the machine", ("machine",), unit="bytes")
HOST_DISK_WRITTEN = counter(
    "ai_platform_host_disk_written_bytes_total", "Bytes written to all disks of the machine", ("machine",), unit="bytes"
)
HOST_NETWORK_RECEIVED = counter(
    "ai_platform_host_network_received_bytes_total",
    "Bytes received on all network interfaces of the machine except loopback",
    ("machine",),
    unit="bytes",
)
HOST_NETWORK_SENT = counter(
    "ai_platform_host_network_sent_bytes_total",
    "Bytes sent on all network interfaces of the machine except loopback",
    ("machine",),
    unit="bytes",
)
GPU_USAGE = gauge("ai_platform_gpu_usage_ratio", "GPU usage over the last sample period, from 0 to 1", ("machine", "gpu"))
GPU_MEMORY_USED = gauge("ai_platform_gpu_memory_used_bytes", "Used memory of the GPU", ("machine", "gpu"), unit="bytes")
GPU_MEMORY_TOTAL = gauge("ai_platform_gpu_memory_total_bytes", "Total memory of the GPU", ("machine", "gpu"), unit="bytes")
GPU_POWER = gauge("ai_platform_gpu_power_watts", "Current power draw of the GPU", ("machine", "gpu"), unit="watts")
GPU_TEMPERATURE = gauge("ai_platform_gpu_temperature_celsius", "Temperature of the GPU", ("machine", "gpu"), unit="celsius")
ENERGY = counter(
    "ai_platform_energy_joules_total",
    "Energy of a worker's GPU or machine (device), by source: counter, power (integrated) or watts (of its settings)",
    ("device", "source"),
    unit="joules",
)
ENERGY_COST = counter("ai_platform_energy_cost_total", "What that energy cost at the worker's KWH_PRICE, in credits", ("device",))

ALL: tuple[Instrument, ...] = tuple(found for found in list(globals().values()) if isinstance(found, Instrument))
