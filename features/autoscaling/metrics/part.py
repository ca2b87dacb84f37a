"""What autoscaling adds to the metrics service."""

from features.autoscaling.metrics.scaling_http import PREFIX, ScalingHttp
from features.autoscaling.metrics.scaling_module import ScalingModule
from services.metrics.features import Built, MetricsPart, Site


def _build(site: Site) -> Built:
    """Raises BadSettings for a bad POOLS_FILE."""
    scaling = ScalingModule(site.settings, site.node, site.latest)
    return Built(
        served=[scaling],
        tasks={"scaling": scaling.run},
        leader_duties=[scaling],
        checks=scaling.checks,
        apps={f"{PREFIX}{{pool}}": ScalingHttp(scaling.pool, site.identify, site.audit_reporting.report_refusal)},
    )


PART = MetricsPart(_build)
