"""The metrics of files.

Every gateway reads ``FILES_BYTES`` from PostgreSQL for the whole mesh, so take the maximum over the gateways.
"""

from shared.telemetry.instrument import counter, gauge

FILES_BYTES = gauge(
    "ai_platform_files_bytes",
    "Bytes of stored files over all gateways, read every 10 minutes, by store: database for small ones, else the scheme of FILES_URL",
    ("store",),
    unit="bytes",
)
FILE_STORE_ERRORS = counter(
    "ai_platform_file_store_errors_total",
    "Failures of the store of files, by the scheme of FILES_URL. Each gateway tries it every 15 s",
    ("store",),
)
