"""What channels of alerts add to the metrics service."""

from features.alert_channels.metrics import channels
from features.alert_channels.metrics.alertmanager import Alertmanager
from features.alert_channels.settings import AlertChannelSettings
from services.metrics.features import Built, MetricsPart, Site


def _build(site: Site) -> Built:
    """Raises BadSettings for a bad SMTP_URL or MAIL_FROM."""
    settings = site.settings.of(AlertChannelSettings)
    alertmanager = None if settings.alertmanager_url is None else Alertmanager(settings.alertmanager_url)
    return Built(channels=[*channels.open_channels(settings)], alerts=alertmanager)


PART = MetricsPart(_build)
