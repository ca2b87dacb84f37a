"""The numbers that others give us through recordMetric: what may be recorded, and what has been. Pure."""

import re
from collections.abc import Iterator, Mapping
from math import isfinite

from services.metrics import prometheus
from shared import errors
from shared.telemetry import instruments

#: All of them together live in memory and in every scrape.
MAX_SERIES = 1_000
MAX_LABELS = 10
MAX_NAME = 200
MAX_LABEL_VALUE = 200

_NAME = re.compile(prometheus.NAME)
_LABEL_NAME = re.compile(r"[a-zA-Z_][a-zA-Z0-9_]*")
#: Prometheus gives these a meaning of their own.
_RESERVED_LABELS = frozenset({"le", "quantile"})
_OWN_NAMES = frozenset(one.name + suffix for one in instruments.ALL for suffix in ("", "_bucket", "_sum", "_count"))
_OWN_PREFIX = "ai_platform_process_"

_Labels = tuple[tuple[str, str], ...]


class Recorded:
    """The series made by recordMetric. A name that ends in ``_total`` is a counter, any other a gauge."""

    def __init__(self) -> None:
        self._families: dict[str, dict[_Labels, float]] = {}
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def record(self, name: str, value: float, labels: Mapping[str, str]) -> None:
        """Add to a counter or set a gauge; raises BadRequest, which says the rule that was broken, and changes nothing then."""
        check(name, value, labels)
        key = tuple(sorted((label, text) for label, text in labels.items() if text))
        series = self._families.get(name, {})
        if key not in series and self._count >= MAX_SERIES:
            raise errors.BadRequest(
                f"metricName: there are {MAX_SERIES} recorded series already, and {name} with these labels would be one more",
                hint="use fewer label values; recorded series are forgotten when the metrics service restarts",
            )
        new = series.get(key, 0.0) + value if is_counter(name) else value
        if not isfinite(new):
            raise errors.BadRequest(f"value: {name} would leave the range of numbers")
        self._count += key not in series
        series[key] = new
        self._families[name] = series

    def render(self) -> str:
        """All of them as Prometheus text."""
        return "".join(
            prometheus.render_family(name, "counter" if is_counter(name) else "gauge", "Recorded by recordMetric", _dicts(series))
            for name, series in self._families.items()
        )


def is_counter(name: str) -> bool:
    return name.endswith("_total")


def check(name: str, value: float, labels: Mapping[str, str]) -> None:
    """Raises BadRequest unless a metric of this name, value and labels may be recorded."""
    _check_name(name)
    if not isfinite(value):
        raise errors.BadRequest("value: only finite numbers can be recorded, not NaN or infinity")
    if is_counter(name) and value < 0:
        raise errors.BadRequest(
            f"value: {name} ends in _total, so it is a counter, and a counter only grows", hint="choose a name without _total"
        )
    if len(labels) > MAX_LABELS:
        raise errors.BadRequest(f"labels: at most {MAX_LABELS}, not {len(labels)}")
    for label, text in labels.items():
        _check_label(label, text)


def _check_name(name: str) -> None:
    if len(name) > MAX_NAME or not _NAME.fullmatch(name):
        raise errors.BadRequest(
            f"metricName: a name has letters, digits, _ and :, begins with no digit and has at most {MAX_NAME} characters",
            hint="for example my_app_jobs_total",
        )
    if name in _OWN_NAMES or name.startswith(_OWN_PREFIX):
        raise errors.BadRequest(
            f"metricName: {name} is counted by aimesh itself", hint="choose a name of your own, also below ai_platform_"
        )


def _check_label(label: str, text: str) -> None:
    if not _LABEL_NAME.fullmatch(label) or len(label) > MAX_NAME:
        raise errors.BadRequest("labels: a label's name has letters, digits and _ and begins with no digit")
    if label.startswith("__") or label in _RESERVED_LABELS:
        raise errors.BadRequest(f"labels: {label} has a meaning of its own in Prometheus", hint="choose another name for the label")
    if len(text) > MAX_LABEL_VALUE:
        raise errors.BadRequest(
            f"labels: the value of {label} has {len(text)} characters, at most {MAX_LABEL_VALUE} are allowed",
            hint="labels are for few, short values",
        )


def _dicts(series: Mapping[_Labels, float]) -> Iterator[tuple[Mapping[str, str], float]]:
    return ((dict(labels), value) for labels, value in series.items())
