"""The built-in notices of the usage export: the conditions of the alert rules of the same names."""

import operator

from features.usage_export import instruments
from services.metrics.alerting.readings import Find, Readings, Threshold, Vector, fold
from shared.telemetry.instrument import Instrument


def _differing(tokens: Instrument, micro: Instrument) -> Find:
    """Read a difference in tokens, or in micro-credits if that is larger."""

    def find(readings: Readings) -> Vector:
        of_tokens, of_micro = fold(max, tokens, "sink")(readings), fold(max, micro, "sink")(readings)
        return {**of_tokens, **{labels: value for labels, value in of_micro.items() if value > of_tokens.get(labels, 0.0)}}

    return find


def _threshold(name: str, tokens: Instrument, micro: Instrument) -> Threshold:
    return Threshold(name, _differing(tokens, micro), operator.gt, 0, "{:,.0f}", gauges=(tokens, micro))


THRESHOLDS = (
    Threshold("usage_export_late", fold(max, instruments.LAG, "sink"), operator.gt, 3600, "{:,.0f} s", gauges=(instruments.LAG,)),
    _threshold("usage_export_difference", instruments.DIFFERENCE_TOKENS, instruments.DIFFERENCE_MICRO),
    _threshold("usage_export_excess", instruments.EXCESS_TOKENS, instruments.EXCESS_MICRO),
)
