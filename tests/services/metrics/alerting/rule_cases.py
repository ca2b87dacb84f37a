"""The cases of tests/deploy/rules, which promtool runs too, for the thresholds."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from services.metrics.history.samples import Labels, Sample
from tests import feature_parts

FILES = [*sorted((Path(__file__).parents[3] / "deploy" / "rules").glob("*.test.yml")), *feature_parts.files("deploy/*.test.yml")]
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_PAIR = re.compile(r'(\w+)="([^"]*)"')
_WORD = re.compile(r"(?P<start>_|stale|-?[\d.]+)(?P<step>[+-][\d.]+)?(?:x(?P<times>\d+))?")


@dataclass(frozen=True, slots=True)
class RuleCase:
    name: str
    alert: str
    step_seconds: int
    #: Series and their values at each step; None for no sample.
    series: tuple[tuple[str, Labels, list[float | None]], ...]
    #: The labels of the alert that fires; None if there is none.
    fires: Labels | None
    #: How often it fires.
    times: int

    def samples(self, step: int) -> Iterator[Sample]:
        for name, labels, values in self.series:
            if step < len(values) and (value := values[step]) is not None:
                yield Sample(name, labels, value)

    @property
    def steps(self) -> int:
        return len(self.series[0][2])


def load() -> list[RuleCase]:
    return [_case(test) for path in FILES for test in yaml.safe_load(path.read_text(encoding="utf-8"))["tests"]]


def _case(test: dict[str, Any]) -> RuleCase:
    (expected,) = test["promql_expr_test"]
    found = dict(_PAIR.findall(expected["expr"]))
    samples = expected.get("exp_samples", [])
    labels = dict(_PAIR.findall(samples[0]["labels"])) if samples else {}
    own = tuple(sorted((name, value) for name, value in labels.items() if name not in ("alertname", "alertstate", "severity")))
    series = tuple((each["series"].partition("{")[0], _labels(each["series"]), _values(each["values"])) for each in test["input_series"])
    seconds = int(test["interval"][:-1]) * _UNITS[test["interval"][-1]]
    return RuleCase(test["name"], found["alertname"], seconds, series, own if samples else None, samples[0]["value"] if samples else 0)


def _labels(series: str) -> Labels:
    return tuple(sorted((name, value) for name, value in _PAIR.findall(series) if value))


def _values(text: str) -> list[float | None]:
    """Expand Prometheus' notation."""
    values: list[float | None] = []
    for word in text.split():
        found = _WORD.fullmatch(word)
        assert found is not None, word
        # `_x3` are three values, `1x3` are four.
        times = int(found["times"] or 0)
        if found["start"] in ("_", "stale"):
            values += [None] * max(1, times)
        else:
            values += [float(found["start"]) + n * float(found["step"] or 0) for n in range(times + 1)]
    return values
