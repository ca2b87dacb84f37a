"""The series of a gauge whose labels come and go: what is no longer there is no longer shown."""

from collections.abc import Callable, Mapping

from prometheus_client import Gauge


class LabelledGauge:
    """Of one gauge. ``gauge`` is asked for it when there is something to show: until then the node does not have it."""

    def __init__(self, gauge: Callable[[], Gauge]) -> None:
        self._gauge = gauge
        self._shown: set[tuple[str, ...]] = set()

    def show(self, values: Mapping[tuple[str, ...], float]) -> None:
        """These, by the values of the labels in their order, and no others."""
        for labels in self._shown - values.keys():
            self._gauge().remove(*labels)
        for labels, value in values.items():
            self._gauge().labels(*labels).set(value)
        self._shown = set(values)
