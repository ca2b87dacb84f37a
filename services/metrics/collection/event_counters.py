"""Count domain events and active users as metrics. Events can get lost, so use the counts for charts, never for billing."""

from collections import OrderedDict
from typing import assert_never

from shared import telemetry
from shared.api import events
from shared.types import ModelName, UserId

HOUR = 3600.0
WINDOWS = {"1h": HOUR, "24h": 24 * HOUR, "7d": 7 * 24 * HOUR}
#: About 20 MB. With more users in a week, the counts are too low, first for the longest window.
MAX_USERS = 100_000
#: How many models get their own label value; the model name of a failed request can be any text.
MAX_MODELS = 200
OTHER_MODELS = "other"


class ActiveUserCounter:
    """The last activity of each user, oldest first."""

    def __init__(self, limit: int = MAX_USERS) -> None:
        self._limit = limit
        self._seen: OrderedDict[UserId, float] = OrderedDict()

    def __len__(self) -> int:
        return len(self._seen)

    def record(self, user: UserId, now: float) -> None:
        self._seen[user] = now
        self._seen.move_to_end(user)
        if len(self._seen) > self._limit:
            self._seen.popitem(last=False)

    def count(self, now: float) -> dict[str, int]:
        """Return the number of users per window. Also forgets users beyond the longest window."""
        longest = max(WINDOWS.values())
        while self._seen and now - next(iter(self._seen.values())) > longest:
            self._seen.popitem(last=False)
        counts = dict.fromkeys(WINDOWS, 0)
        for seen_at in self._seen.values():
            for window, seconds in WINDOWS.items():
                counts[window] += now - seen_at <= seconds
        return counts


class EventCounters:
    def __init__(self, metrics: telemetry.Metrics) -> None:
        self._metrics = metrics
        self._models: set[ModelName] = set()
        self.users = ActiveUserCounter()

    def count(self, event: events.Event, now: float) -> None:
        self._metrics.events.labels(event=event.__struct_config__.tag).inc()
        match event:
            case events.RequestCompleted():
                self._completed(event, now)
            case events.UserRegistered() | events.KeyCreated() | events.KeyRevoked() | events.WorkerJoined() | events.WorkerLeft():
                pass
            case _:
                assert_never(event)

    def show_active_users(self, now: float) -> None:
        """Update the gauge. Call this before each rendering, because users leave a window without an event."""
        for window, users in self.users.count(now).items():
            self._metrics.active_users.labels(time_window=window).set(users)

    def _completed(self, event: events.RequestCompleted, now: float) -> None:
        model = self._label(event.model)
        self._metrics.completed_requests.labels(status=event.status, model=model).inc()
        # Ignore a negative count, a bug of the sender: a counter cannot decrease.
        self._metrics.completed_tokens.labels(model=model).inc(max(0, event.tokens))
        if event.user_id is not None:
            self.users.record(event.user_id, now)

    def _label(self, model: ModelName | None) -> str:
        if model is None:
            return ""
        if model not in self._models:
            if len(self._models) >= MAX_MODELS:
                return OTHER_MODELS
            self._models.add(model)
        return model
