"""The sinks of the usage export as the gateway lists them."""

from features.usage_export.contract import ReadUsageExport, UsageExportState, UsageSink
from shared.types import Credential

#: What the pages of administrators may call.
READING = {"gateway.readUsageExport"}


class FakeUsageExport:
    sinks: tuple[UsageSink, ...] = ()

    def _read_usage_export(self, _request: ReadUsageExport, _: Credential | None) -> UsageExportState:
        return UsageExportState(self.sinks)


FAKE = FakeUsageExport
