"""The built-in notice of jobs: the condition of the alert rule of the same name."""

import operator

from features.jobs.instruments import JOB_LINES_ENDED, JOB_OLDEST
from services.metrics.alerting.readings import Counter, Readings, Threshold, Vector, fold

_LINES = Counter(JOB_LINES_ENDED.name, frozenset({"model"}), lambda has: has.get("result") in ("done", "failed"), seconds=900.0)


def _stalled(readings: Readings) -> Vector:
    """Jobs that wait for something else, such as credits, have no oldest line."""
    ended = readings.growth.get(_LINES.name, {})
    oldest = fold(max, JOB_OLDEST, "model")(readings)
    return {labels: value for labels, value in oldest.items() if not ended.get(labels)}


THRESHOLDS = (Threshold("jobs_stalled", _stalled, operator.gt, 900, "{:,.0f} s", _LINES, (JOB_OLDEST,)),)
