"""What the usage export adds to the gateway."""

from collections.abc import Iterator
from functools import partial

from features.usage_export.gateway.acknowledged_files import AcknowledgedFiles
from features.usage_export.gateway.export import UsageExport
from features.usage_export.gateway.file_sink import FileSink
from features.usage_export.gateway.sinks import CloudEventsSink, Sink
from features.usage_export.gateway.store import OutboxStore
from features.usage_export.gateway.stripe_sink import StripeSink
from features.usage_export.settings import UsageExportSettings
from services.gateway import background_jobs
from services.gateway.features import Built, GatewayPart, Site
from services.gateway.settings import GatewaySettings

_JOB = "usage_export"


def _build(site: Site) -> Built:
    settings, metrics = site.settings.of(UsageExportSettings), site.node.metrics
    outbox = OutboxStore(site.database, f"/aimesh/{site.settings.mesh}")
    files = AcknowledgedFiles(outbox, site.settings.recovery_log_dir, site.node.id)
    export = UsageExport(outbox, tuple(_sinks(settings, outbox, site)), settings.usage_export_unit, files, metrics)
    return Built(
        served=[export],
        tasks={
            "state of the usage export": partial(background_jobs.repeat, _JOB, 60, export.measure, metrics),
            "acknowledged usage": export.keep_files,
            **{f"usage export to {each.name}": each.run for each in export.exports},
        },
        delete_old=export.delete_old,
    )


def _sinks(settings: UsageExportSettings, outbox: OutboxStore, site: Site) -> Iterator[Sink]:
    if settings.usage_export_url is not None:
        yield CloudEventsSink(settings.usage_export_url, settings.usage_export_token_file)
    if settings.usage_export_file is not None:
        yield FileSink(settings.usage_export_file)
    if settings.usage_export_stripe_meter is not None and site.meters is not None:
        yield StripeSink(site.meters, settings.usage_export_stripe_meter, outbox)


def _reads_outbox(settings: GatewaySettings) -> bool:
    return settings.of(UsageExportSettings).exports_usage


PART = GatewayPart(_build, _reads_outbox)
