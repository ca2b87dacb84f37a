"""Read the samples that the alert rules need from the metrics text, and keep them as far back as their windows. Pure; memory is bounded.

Counters are stored as their total increase, which resets cannot falsify: in short steps for the last hour, in longer steps before. The
next leader continues from ``dump``.
"""

import bisect
import math
import re
import zlib
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, TypeAlias

import msgspec

from services.metrics.alerting.rules.alert_rule import AlertRule
from services.metrics.alerting.rules.evaluation import Labels, Vector
from services.metrics.alerting.rules.evaluation import labels as sorted_labels
from services.metrics.alerting.rules.expressions import Increase, Selector, TimeWindow, walk
from services.metrics.export.series import escape, parse_head, unescape

MAX_SERIES: Final = 20_000
_CLOSE_SECONDS, _FAR_SECONDS = 15.0, 300.0
_NEAR_PAST_SECONDS: Final = 70 * 60.0
#: A series that is gone for longer is forgotten, unless a window needs it.
_GONE_SECONDS: Final = 60.0
#: The increase during a longer pause is ignored, because its time is unknown.
_PAUSE_SECONDS: Final = 300.0
_LINE = re.compile(r"[^\n]+")

#: A stored counter: name, labels, value, time, total increase, and the times and increases of each track.
_Dumped: TypeAlias = tuple[str, Labels, float, float, float, tuple[tuple[bytes, bytes], ...]]


@dataclass(frozen=True, slots=True)
class Sample:
    name: str
    labels: Labels
    value: float


@dataclass(slots=True)
class _Track:
    """Times and total increases, in steps of ``stride``."""

    stride: float
    horizon: float
    times: "array[float]" = field(default_factory=lambda: array("d"))
    grown: "array[float]" = field(default_factory=lambda: array("d"))

    def note(self, now: float, grown: float) -> None:
        if self.times and now - self.times[-1] < self.stride:
            return
        self.times.append(now)
        self.grown.append(grown)
        # Keep one point before the horizon, as its baseline.
        old = bisect.bisect_right(self.times, now - self.horizon) - 1
        if old > len(self.times) // 4:
            del self.times[:old], self.grown[:old]

    def at(self, moment: float) -> float | None:
        """Return the total increase at a moment; None before the first point."""
        found = bisect.bisect_right(self.times, moment) - 1
        return self.grown[found] if found >= 0 else None


@dataclass(slots=True)
class _Series:
    value: float
    seen_at: float
    grown: float = 0.0
    #: In short and long steps; empty if no window needs them.
    tracks: tuple[_Track, ...] = ()

    def take(self, value: float, now: float) -> None:
        self.grown += value - self.value if value >= self.value else 0.0 if math.isnan(self.value) else value
        self.value, self.seen_at = value, now
        for track in self.tracks:
            track.note(now, self.grown)

    def grown_by(self, moment: float) -> float:
        if moment >= self.seen_at:
            return self.grown
        for track in self.tracks:
            found = track.at(moment)
            if found is not None:
                return found
        return 0.0


class SampleWindow:
    """Implements ``MetricReadings`` for the given rules, as of the last ``take``."""

    def __init__(self, rules: Iterable[AlertRule]) -> None:
        #: Series name -> how far back the rules look.
        self._horizons: dict[str, float] = {}
        selectors: dict[str, dict[Selector, None]] = {}
        for rule in rules:
            for part in walk(rule.when):
                selector = getattr(part, "of", None)
                if isinstance(selector, Selector):
                    back = part.window.seconds + part.window.ago_seconds if isinstance(part, Increase) else 0
                    self._horizons[selector.name] = max(self._horizons.get(selector.name, 0), back)
                    selectors.setdefault(selector.name, {})[selector] = None
        #: The selectors of the wanted series, by name.
        self.wanted = {name: tuple(found) for name, found in selectors.items()}
        self._series: dict[str, dict[Labels, _Series]] = {name: {} for name in self._horizons}
        self._count = 0
        self._now = 0.0
        #: How many series exceeded the limit at the last ``take``.
        self.left_out = 0

    def __len__(self) -> int:
        return self._count

    def take(self, samples: Iterable[Sample], now: float) -> None:
        """Process one collection. ``now`` must not decrease."""
        self._now = now
        self.left_out = 0
        for sample in samples:
            known = self._series.get(sample.name)
            if known is None:
                continue
            series = known.get(sample.labels)
            if series is not None:
                series.take(sample.value, now)
            elif not any(_is_meant(sample.labels, selector) for selector in self.wanted[sample.name]):
                continue
            elif self._count < MAX_SERIES:
                self._add(sample, now)
            else:
                self.left_out += 1
        self._forget()

    def _add(self, sample: Sample, now: float) -> _Series:
        horizon = self._horizons[sample.name]
        strides = [(_CLOSE_SECONDS, min(horizon, _NEAR_PAST_SECONDS))] if horizon else []
        if horizon > _NEAR_PAST_SECONDS:
            strides.append((_FAR_SECONDS, horizon))
        made = _Series(sample.value, now, tracks=tuple(_Track(stride, back) for stride, back in strides))
        for track in made.tracks:
            track.note(now, 0.0)
        self._series[sample.name][sample.labels] = made
        self._count += 1
        return made

    def _forget(self) -> None:
        for name, known in self._series.items():
            limit = max(self._horizons[name], _GONE_SECONDS)
            for labels in [labels for labels, series in known.items() if self._now - series.seen_at > limit]:
                del known[labels]
                self._count -= 1

    def dump(self) -> bytes:
        """Encode the counters: some hundred kilobytes for 1,000 counters with a window of three days."""
        found = [
            (name, labels, one.value, one.seen_at, one.grown, [(track.times.tobytes(), track.grown.tobytes()) for track in one.tracks])
            for name, known in self._series.items()
            for labels, one in known.items()
            if one.tracks
        ]
        return zlib.compress(msgspec.msgpack.encode(found), level=1)

    def clear(self) -> None:
        self._series = {name: {} for name in self._horizons}
        self._count = 0

    def load(self, dumped: bytes, now: float) -> None:
        """Insert a dump before the current samples. Ignores counters that no rule needs. Raises ValueError for an unknown format."""
        try:
            found = msgspec.msgpack.decode(zlib.decompress(dumped), type=list[_Dumped])
        except zlib.error as error:
            raise ValueError(f"not compressed: {error}") from error
        for name, labels, value, seen_at, grown, tracks in found:
            if name not in self._horizons or (labels not in self._series[name] and self._count >= MAX_SERIES):
                continue
            baseline = value if now - seen_at <= _PAUSE_SECONDS else math.nan
            one = self._series[name].get(labels) or self._add(Sample(name, labels, baseline), seen_at)
            for track, (times, growth) in zip(one.tracks, tracks, strict=False):
                track.times = array("d", times) + track.times
                track.grown = array("d", growth) + array("d", (grown + more for more in track.grown))
            one.grown += grown

    def latest(self, selector: Selector) -> Vector:
        return {
            labels: series.value
            for labels, series in self._series.get(selector.name, {}).items()
            if series.seen_at == self._now and _is_meant(labels, selector)
        }

    def increase(self, selector: Selector, window: TimeWindow) -> Vector:
        end = self._now - window.ago_seconds
        begin = end - window.seconds
        return {
            labels: series.grown_by(end) - series.grown_by(begin)
            for labels, series in self._series.get(selector.name, {}).items()
            if _is_meant(labels, selector) and series.seen_at >= begin
        }


def _is_meant(labels: Labels, selector: Selector) -> bool:
    has = dict(labels)
    return all(has.get(label, "") in values for label, values in selector.where) and all(
        has.get(label, "") not in values for label, values in selector.without
    )


@dataclass(frozen=True, slots=True)
class _LineFilter:
    """A cheap test of an unparsed line, because most lines of a large mesh are not wanted."""

    #: The line must contain one text of each group …
    needed: tuple[tuple[str, ...], ...]
    #: … and none of these.
    unwanted: tuple[str, ...]

    @classmethod
    def of(cls, selector: Selector) -> "_LineFilter":
        # A label that can be empty can be missing.
        needed = tuple(tuple(_pair(label, value) for value in values) for label, values in selector.where if "" not in values)
        unwanted = [_pair(label, value) for label, values in selector.without for value in values if value]
        # The character before excludes labels such as exported_service.
        return cls(needed, tuple(before + pair for pair in unwanted for before in "{,"))

    def may_be(self, line: str) -> bool:
        return all(any(pair in line for pair in pairs) for pairs in self.needed) and not any(pair in line for pair in self.unwanted)


def read_samples(text: str, wanted: Mapping[str, Sequence[Selector]]) -> Iterator[Sample]:
    """Yield the finite samples that match a selector of their name, and possibly more; all if the name has no selectors."""
    glances = {name: [_LineFilter.of(selector) for selector in selectors] for name, selectors in wanted.items()}
    for found in _LINE.finditer(text):
        line = found.group()
        name = line.partition("{")[0].partition(" ")[0]
        known = glances.get(name)
        if known is None or (known and not any(glance.may_be(line) for glance in known)):
            continue
        head, _, number = line.rpartition(" ")
        value = float(number)
        labels = _parse_labels(head)
        if labels is not None and math.isfinite(value):
            yield Sample(name, labels, value)


def _pair(label: str, value: str) -> str:
    return f'{label}="{escape(value)}"'


def _parse_labels(head: str) -> Labels | None:
    parsed = parse_head(head)
    return None if parsed is None else sorted_labels(**{label: unescape(text) for label, text in parsed.labels.items()})
