"""metrics: how many workers each pool has and needs."""

from enum import StrEnum
from typing import Annotated

from msgspec import Meta

from shared.api.method import PEOPLE_OR_GATEWAY, Body, Method
from shared.types import Moment


class GetScaling(Body, frozen=True):
    #: None for all pools.
    pool: Annotated[str, Meta(max_length=63)] | None = None
    #: How many of the newest hook calls to return.
    calls: Annotated[int, Meta(ge=0, le=1000)] = 0


class PoolScaling(Body, frozen=True, omit_defaults=False, kw_only=True):
    """A pool of workers, how large it is, and how large it should be."""

    pool: str
    ready: int = 0
    #: Workers that load their model.
    starting: int = 0
    wanted: int = 0
    #: What the demand needs beyond the pool's maximum or budget.
    denied: int = 0
    reason: str = ""
    waiting: int = 0
    oldest_seconds: float = 0.0
    #: For a request that arrives now; null if unknown.
    expected_wait_seconds: float | None = None
    tokens_per_second: float = 0.0
    #: Of all ready and starting workers.
    cost_per_hour: float = 0.0
    #: Its workers did not become ready in time, so none is started for a while.
    given_up: bool = False
    #: Null before the first decision.
    as_of: Moment | None = None
    #: Whether ``as_of`` is recent. If not, nothing must change.
    fresh: bool = False
    min: int = 0
    max: int = 0
    start_seconds: float = 0.0
    #: exec or webhook; none: something else reads the advice.
    hook: str = "none"


class ScaleCallState(StrEnum):
    #: Or the metrics replica that called it ended before the hook did.
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"


class ScaleCallEntry(Body, frozen=True, omit_defaults=False):
    """A call of a pool's hook, with all its attempts."""

    pool: str
    at: Moment
    current: int
    wanted: int
    reason: str
    state: ScaleCallState
    attempts: int
    #: Why the last attempt failed.
    problem: str = ""


class Scaling(Body, frozen=True, omit_defaults=False):
    pools: tuple[PoolScaling, ...]
    #: Newest first.
    calls: tuple[ScaleCallEntry, ...] = ()
    #: Why the changed POOLS_FILE is not used; empty if it is.
    problem: str = ""


get_scaling = Method("metrics.getScaling", GetScaling, Scaling, callers=PEOPLE_OR_GATEWAY)
