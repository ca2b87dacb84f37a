"""Declare the metrics of the machine that a node runs on; part of the instrument list.

Every node on a machine reports the machine's figures with the same ``machine`` label, so ``max by (machine)`` counts each machine once.
"""

from shared.telemetry.instrument import Instrument, InstrumentKind

HOST_CPU = Instrument(
    name="ai_platform_host_cpu_usage_ratio",
    kind=InstrumentKind.GAUGE,
    labels=("machine",),
    help="CPU usage of the machine since the previous collection, from 0 to 1",
)
HOST_MEMORY_USED = Instrument(
    name="ai_platform_host_memory_used_bytes",
    kind=InstrumentKind.GAUGE,
    labels=("machine",),
    unit="bytes",
    help="Memory of the machine that is not available to programs",
)
HOST_MEMORY_TOTAL = Instrument(
    name="ai_platform_host_memory_total_bytes",
    kind=InstrumentKind.GAUGE,
    labels=("machine",),
    unit="bytes",
    help="Total memory of the machine",
)
HOST_DISK_FREE = Instrument(
    name="ai_platform_host_disk_free_bytes",
    kind=InstrumentKind.GAUGE,
    labels=("machine", "disk"),
    unit="bytes",
    help="Free space on the disk that holds the node's files",
)
HOST_DISK_TOTAL = Instrument(
    name="ai_platform_host_disk_total_bytes",
    kind=InstrumentKind.GAUGE,
    labels=("machine", "disk"),
    unit="bytes",
    help="Size of the disk that holds the node's files",
)
HOST_DISK_READ = Instrument(
    name="ai_platform_host_disk_read_bytes_total",
    kind=InstrumentKind.COUNTER,
    labels=("machine",),
    unit="bytes",
    help="Bytes read from all disks of the machine",
)
HOST_DISK_WRITTEN = Instrument(
    name="ai_platform_host_disk_written_bytes_total",
    kind=InstrumentKind.COUNTER,
    labels=("machine",),
    unit="bytes",
    help="Bytes written to all disks of the machine",
)
HOST_NETWORK_RECEIVED = Instrument(
    name="ai_platform_host_network_received_bytes_total",
    kind=InstrumentKind.COUNTER,
    labels=("machine",),
    unit="bytes",
    help="Bytes received on all network interfaces of the machine except loopback",
)
HOST_NETWORK_SENT = Instrument(
    name="ai_platform_host_network_sent_bytes_total",
    kind=InstrumentKind.COUNTER,
    labels=("machine",),
    unit="bytes",
    help="Bytes sent on all network interfaces of the machine except loopback",
)
GPU_USAGE = Instrument(
    name="ai_platform_gpu_usage_ratio",
    kind=InstrumentKind.GAUGE,
    labels=("machine", "gpu"),
    help="GPU usage over the last sample period, from 0 to 1",
)
GPU_MEMORY_USED = Instrument(
    name="ai_platform_gpu_memory_used_bytes",
    kind=InstrumentKind.GAUGE,
    unit="bytes",
    labels=("machine", "gpu"),
    help="Used memory of the GPU",
)
GPU_MEMORY_TOTAL = Instrument(
    name="ai_platform_gpu_memory_total_bytes",
    kind=InstrumentKind.GAUGE,
    unit="bytes",
    labels=("machine", "gpu"),
    help="Total memory of the GPU",
)
GPU_POWER = Instrument(
    name="ai_platform_gpu_power_watts",
    kind=InstrumentKind.GAUGE,
    unit="watts",
    labels=("machine", "gpu"),
    help="Current power draw of the GPU",
)
GPU_TEMPERATURE = Instrument(
    name="ai_platform_gpu_temperature_celsius",
    kind=InstrumentKind.GAUGE,
    unit="celsius",
    labels=("machine", "gpu"),
    help="Temperature of the GPU",
)

ALL: tuple[Instrument, ...] = tuple(found for found in list(globals().values()) if isinstance(found, Instrument))
