"""Declare the metrics of the machine that a node runs on; part of the instrument list.

Every node on a machine reports the machine's figures with the same ``machine`` label, so ``max by (machine)`` counts each machine once.
"""

from shared.telemetry.instrument import counter, gauge


class HostInstruments:
    host_cpu = gauge(
        "ai_platform_host_cpu_usage_ratio", "CPU usage of the machine since the previous collection, from 0 to 1", ("machine",)
    )
    host_memory_used = gauge(
        "ai_platform_host_memory_used_bytes", "Memory of the machine that is not available to programs", ("machine",), unit="bytes"
    )
    host_memory_total = gauge("ai_platform_host_memory_total_bytes", "Total memory of the machine", ("machine",), unit="bytes")
    host_disk_free = gauge(
        "ai_platform_host_disk_free_bytes", "Free space on the disk that holds the node's files", ("machine", "disk"), unit="bytes"
    )
    host_disk_total = gauge(
        "ai_platform_host_disk_total_bytes", "Size of the disk that holds the node's files", ("machine", "disk"), unit="bytes"
    )
    host_disk_read = counter(
        "ai_platform_host_disk_read_bytes_total", "Bytes read from all disks of the machine", ("machine",), unit="bytes"
    )
    host_disk_written = counter(
        "ai_platform_host_disk_written_bytes_total", "Bytes written to all disks of the machine", ("machine",), unit="bytes"
    )
    host_network_received = counter(
        "ai_platform_host_network_received_bytes_total",
        "Bytes received on all network interfaces of the machine except loopback",
        ("machine",),
        unit="bytes",
    )
    host_network_sent = counter(
        "ai_platform_host_network_sent_bytes_total",
        "Bytes sent on all network interfaces of the machine except loopback",
        ("machine",),
        unit="bytes",
    )
    gpu_usage = gauge("ai_platform_gpu_usage_ratio", "GPU usage over the last sample period, from 0 to 1", ("machine", "gpu"))
    gpu_memory_used = gauge("ai_platform_gpu_memory_used_bytes", "Used memory of the GPU", ("machine", "gpu"), unit="bytes")
    gpu_memory_total = gauge("ai_platform_gpu_memory_total_bytes", "Total memory of the GPU", ("machine", "gpu"), unit="bytes")
    gpu_power = gauge("ai_platform_gpu_power_watts", "Current power draw of the GPU", ("machine", "gpu"), unit="watts")
    gpu_temperature = gauge("ai_platform_gpu_temperature_celsius", "Temperature of the GPU", ("machine", "gpu"), unit="celsius")
    energy = counter(
        "ai_platform_energy_joules_total",
        "Energy of a worker's GPU or machine (device), by source: counter, power (integrated) or watts (of its settings)",
        ("device", "source"),
        unit="joules",
    )
    energy_cost = counter("ai_platform_energy_cost_total", "What that energy cost at the worker's KWH_PRICE, in credits", ("device",))
