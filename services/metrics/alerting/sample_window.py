"""What the rules look at, remembered for as long as their longest window. Pure; memory is bounded.

Of counters it keeps how far each has grown, so that one that began again is no mystery later: close together for the last hour, and
further apart before that. A series that was never seen has not grown. The next leader continues with what ``dump`` returns.
"""

import bisect
import math
import zlib
from array import array
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, TypeAlias

import msgspec

from services.metrics.alerting.rules.alert_rule import AlertRule
from services.metrics.alerting.rules.evaluation import Labels, Vector
from services.metrics.alerting.rules.expressions import Increase, Selector, TimeWindow, walk

#: Over all names; beyond them new ones are left out, and counted.
MAX_SERIES: Final = 20_000
#: Points of the last hour lie so close, those before it so far apart.
_CLOSE_SECONDS, _FAR_SECONDS = 15.0, 300.0
_NEAR_PAST_SECONDS: Final = 70 * 60.0
#: A series that is gone for longer than this is no part of the present.
_GONE_SECONDS: Final = 60.0
#: What a counter grew by while nobody looked for longer than this is of no known time, and left out.
_PAUSE_SECONDS: Final = 300.0

#: A counter as it is dumped: name, labels, value, when it was seen, how far it had grown; and of each track times and growth.
_Dumped: TypeAlias = tuple[str, Labels, float, float, float, tuple[tuple[bytes, bytes], ...]]


@dataclass(frozen=True, slots=True)
class Sample:
    """One number of a series, as it was collected."""

    name: str
    labels: Labels
    value: float


@dataclass(slots=True)
class _Track:
    """When, and how far it had grown by then, in two strides."""

    stride: float
    horizon: float
    times: "array[float]" = field(default_factory=lambda: array("d"))
    grown: "array[float]" = field(default_factory=lambda: array("d"))

    def note(self, now: float, grown: float) -> None:
        if self.times and now - self.times[-1] < self.stride:
            return
        self.times.append(now)
        self.grown.append(grown)
        # One that is older than the horizon stays: it says how far it had grown there.
        old = bisect.bisect_right(self.times, now - self.horizon) - 1
        if old > len(self.times) // 4:
            del self.times[:old], self.grown[:old]

    def at(self, moment: float) -> float | None:
        """How far it had grown at the last point not after this; None where that is further back than it reaches."""
        found = bisect.bisect_right(self.times, moment) - 1
        return self.grown[found] if found >= 0 else None


@dataclass(slots=True)
class _Series:
    value: float
    seen_at: float
    grown: float = 0.0
    #: Close and far; of those that no window asks for, none.
    tracks: tuple[_Track, ...] = ()

    def take(self, value: float, now: float) -> None:
        # One that shrank has begun again.
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
        # It was not there yet.
        return 0.0


class SampleWindow:
    """``MetricReadings`` for the rules it is made for, as of the last ``take``."""

    def __init__(self, rules: Iterable[AlertRule]) -> None:
        #: Name of a series -> how far back the rules look at it, and what they mean of it.
        self._horizons: dict[str, float] = {}
        selectors: dict[str, dict[Selector, None]] = {}
        for rule in rules:
            for part in walk(rule.when):
                selector = getattr(part, "of", None)
                if isinstance(selector, Selector):
                    back = part.window.seconds + part.window.ago_seconds if isinstance(part, Increase) else 0
                    self._horizons[selector.name] = max(self._horizons.get(selector.name, 0), back)
                    selectors.setdefault(selector.name, {})[selector] = None
        self._selectors = {name: tuple(found) for name, found in selectors.items()}
        self._series: dict[str, dict[Labels, _Series]] = {name: {} for name in self._horizons}
        self._count = 0
        self._now = 0.0
        #: Series that found no room, at the last ``take``.
        self.left_out = 0

    @property
    def wanted(self) -> Mapping[str, Sequence[Selector]]:
        """Names of series that it wants to be told, and which of them."""
        return self._selectors

    def __len__(self) -> int:
        return self._count

    def take(self, samples: Iterable[Sample], now: float) -> None:
        """All of one collection. ``now`` never goes back."""
        self._now = now
        self.left_out = 0
        for sample in samples:
            known = self._series.get(sample.name)
            if known is None:
                continue
            series = known.get(sample.labels)
            if series is not None:
                series.take(sample.value, now)
            elif not any(_is_meant(sample.labels, selector) for selector in self._selectors[sample.name]):
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

    # --- over a restart ---------------------------------------------------------------------------------------------

    def dump(self) -> bytes:
        """The counters. Of 1,000 with a window of three days 5 MB of work, and some hundred kilobytes."""
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
        """Put it before what was seen here. Counters that no rule looks at any more are left out. Raises ValueError if another version
        wrote it."""
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

    # --- as Readings ------------------------------------------------------------------------------------------------

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
