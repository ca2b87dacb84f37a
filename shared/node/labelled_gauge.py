"""A gauge whose label values come and go: series that are gone are no longer exported."""

from collections.abc import Callable, Mapping

from prometheus_client import Gauge


class LabelledGauge:
    """``gauge`` is called when there is something to show; until then the gauge does not exist."""

    def __init__(self, gauge: Callable[[], Gauge]) -> None:
        self._gauge = gauge
        self._shown: set[tuple[str, ...]] = set()

    def show(self, values: Mapping[tuple[str, ...], float]) -> None:
        """Export these label values, and no others."""
        for labels in self._shown - values.keys():
            self._gauge().remove(*labels)
        for labels, value in values.items():
            self._gauge().labels(*labels).set(value)
        self._shown = set(values)
