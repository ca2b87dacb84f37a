"""PromQL as parsed by promql-parser, and the series and labels that it may name."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import promql_parser
import yaml

from shared.telemetry import instruments
from shared.telemetry.instrument import Instrument, InstrumentKind

#: Labels that the metrics service and Prometheus add to every series.
EVERYWHERE = {"service", "node", "job", "instance", "le"}
RULES = Path(__file__).parents[2] / "deploy" / "prometheus" / "rules"
#: Name -> expression.
RECORDED: dict[str, str] = {
    rule["record"]: rule["expr"]
    for rule in yaml.safe_load((RULES / "recorded.rules.yml").read_text(encoding="utf-8"))["groups"][0]["rules"]
}
#: Labels of Prometheus's own series of alerts.
ALERTS = {"alertname", "alertstate", "severity"}


def names_of(instrument: Instrument) -> set[str]:
    if instrument.kind is InstrumentKind.HISTOGRAM:
        return {instrument.name + suffix for suffix in ("_bucket", "_sum", "_count")}
    return {instrument.name}


LABELS = {name: {*one.labels, *EVERYWHERE} for one in instruments.ALL for name in names_of(one)}
LABELS |= {name: {*EVERYWHERE, "model"} for name in RECORDED} | {"ALERTS": ALERTS}


def selectors(node: Any) -> Iterator[Any]:
    """Yield every vector selector of a parsed expression."""
    if isinstance(node, promql_parser.VectorSelector):
        yield node
    for part in ("expr", "lhs", "rhs", "vector_selector", "param"):
        inner = getattr(node, part, None)
        if inner is not None and not isinstance(inner, (str, int, float)):
            yield from selectors(inner)
    for inner in getattr(node, "args", None) or ():
        yield from selectors(inner)
