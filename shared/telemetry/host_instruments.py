"""The machine that a node runs on: part of the instrument list.

Every node of a machine reports the machine's figures; the label ``machine`` is the same on all of them, so that ``max by (machine)``
counts each machine once.
"""

from shared.telemetry.instrument import Instrument, InstrumentKind

HOST_CPU = Instrument(
    name="ai_platform_host_cpu_usage_ratio",
    kind=InstrumentKind.GAUGE,
    labels=("machine",),
    help="Of the machine's processors, the share that was busy since the last look, from 0 to 1",
)
HOST_MEMORY_USED = Instrument(
    name="ai_platform_host_memory_used_bytes",
    kind=InstrumentKind.GAUGE,
    labels=("machine",),
    unit="bytes",
    help="Memory of the machine that cannot be given to programs",
)
HOST_MEMORY_TOTAL = Instrument(
    name="ai_platform_host_memory_total_bytes", kind=InstrumentKind.GAUGE, labels=("machine",), unit="bytes", help="Memory of the machine"
)
HOST_DISK_FREE = Instrument(
    name="ai_platform_host_disk_free_bytes",
    kind=InstrumentKind.GAUGE,
    labels=("machine", "disk"),
    unit="bytes",
    help="Free on the disk that has the node's files",
)
HOST_DISK_TOTAL = Instrument(
    name="ai_platform_host_disk_total_bytes",
    kind=InstrumentKind.GAUGE,
    labels=("machine", "disk"),
    unit="bytes",
    help="Size of the disk that has the node's files",
)
HOST_DISK_READ = Instrument(
    name="ai_platform_host_disk_read_bytes_total",
    kind=InstrumentKind.COUNTER,
    labels=("machine",),
    unit="bytes",
    help="Read from all disks of the machine",
)
HOST_DISK_WRITTEN = Instrument(
    name="ai_platform_host_disk_written_bytes_total",
    kind=InstrumentKind.COUNTER,
    labels=("machine",),
    unit="bytes",
    help="Written to all disks of the machine",
)
HOST_NETWORK_RECEIVED = Instrument(
    name="ai_platform_host_network_received_bytes_total",
    kind=InstrumentKind.COUNTER,
    labels=("machine",),
    unit="bytes",
    help="Received by all network interfaces of the machine but loopback",
)
HOST_NETWORK_SENT = Instrument(
    name="ai_platform_host_network_sent_bytes_total",
    kind=InstrumentKind.COUNTER,
    labels=("machine",),
    unit="bytes",
    help="Sent by all network interfaces of the machine but loopback",
)
GPU_USAGE = Instrument(
    name="ai_platform_gpu_usage_ratio",
    kind=InstrumentKind.GAUGE,
    labels=("machine", "gpu"),
    help="Of the last moment, the share in which the GPU computed, from 0 to 1",
)
GPU_MEMORY_USED = Instrument(
    name="ai_platform_gpu_memory_used_bytes",
    kind=InstrumentKind.GAUGE,
    unit="bytes",
    labels=("machine", "gpu"),
    help="Memory of the GPU that is taken",
)
GPU_MEMORY_TOTAL = Instrument(
    name="ai_platform_gpu_memory_total_bytes", kind=InstrumentKind.GAUGE, unit="bytes", labels=("machine", "gpu"), help="Memory of the GPU"
)
GPU_POWER = Instrument(
    name="ai_platform_gpu_power_watts",
    kind=InstrumentKind.GAUGE,
    unit="watts",
    labels=("machine", "gpu"),
    help="What the GPU draws just now",
)
GPU_TEMPERATURE = Instrument(
    name="ai_platform_gpu_temperature_celsius",
    kind=InstrumentKind.GAUGE,
    unit="celsius",
    labels=("machine", "gpu"),
    help="How hot the GPU is",
)

ALL: tuple[Instrument, ...] = tuple(found for found in list(globals().values()) if isinstance(found, Instrument))
