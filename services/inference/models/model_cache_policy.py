"""Decides which models are loaded and unloaded, and which callers wait or are refused.  Pure; the caller passes the time.

The rules:

- Models that are loaded, loading or unloading never need more than the budget together.
- A pinned model, and a model with a running job, is never unloaded.
- Callers wait in order of arrival. The first whose model isn't loaded is the *claimant*: idle models are unloaded for it, the
  least recently used first, as soon as that makes enough room.
- While a claimant waits for busy models, other callers are served as before, and models that fit are loaded. When it is
  *overdue*, the models that must go are *closed*: their jobs finish, new ones wait behind the claimant, and nothing else is
  loaded.
- With ``swap_seconds``, models that don't fit together take turns, so that ABCABC becomes AABBCC: the claimants divide the time
  that is left until each of them has waited ``swap_seconds``, in equal turns. Loads don't count, or else slow ones would leave no
  time for answers. This bounds each wait to ``swap_seconds`` plus the loads and the running jobs in between.
- With ``swap_seconds``, an idle model stays for as long as its load took, if its last caller came that soon. So callers that send
  one request after the other keep their model, and those of single requests delay nobody.
- Without ``swap_seconds``, a claimant is overdue after PATIENCE_SECONDS, and idle models leave at once.
- A model that can't fit, alone or beside the pinned ones, is refused with the numbers.
- After a failed load, a model is retried after a pause that doubles; callers get the reason meanwhile. The retry needs no caller,
  because the gateway sends no requests to the model until a load succeeds.
"""

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from enum import Enum
from math import inf

from services.inference.models.quantities import MemoryBytes
from shared.timing.backoff import Backoff
from shared.types import ModelName

PATIENCE_SECONDS = 15.0
#: After a failed load; doubles each time, so that a broken model doesn't keep the disk busy.
LOAD_BACKOFF = Backoff(first_seconds=5.0, longest_seconds=300.0)
#: After this many failed loads in a row, the model is loaded again only on request.
MAX_FAILURES = 5
#: A model that makes room for others more often in SWAPS_SECONDS is *thrashing*.
MAX_SWAPS = 6
SWAPS_SECONDS = 600.0
_NOTHING = MemoryBytes()


class Stage(Enum):
    UNLOADED = "unloaded"
    LOADING = "loading"
    LOADED = "loaded"
    UNLOADING = "unloading"


# --- decisions, which the owner carries out in order ----------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class LoadModelStep:
    """Start the model, then call ``loaded`` or ``load_failed``."""

    model: ModelName


@dataclass(frozen=True, slots=True)
class UnloadModelStep:
    """Stop the idle model, then call ``unloaded``."""

    model: ModelName
    #: The model that needs its memory; None: it is unloaded for another reason.
    makes_room_for: ModelName | None = None


@dataclass(frozen=True, slots=True)
class AdmitStep:
    """The caller's model is loaded; its job counts until ``finished``."""

    caller: int


@dataclass(frozen=True, slots=True)
class RefuseStep:
    caller: int
    reason: str
    retry_after_seconds: float | None = None


@dataclass(frozen=True, slots=True)
class RecheckStep:
    """Check the file of a model whose load failed, then call ``retry``."""

    model: ModelName


Decision = LoadModelStep | UnloadModelStep | AdmitStep | RefuseStep | RecheckStep


@dataclass(slots=True)
class ManagedModel:
    """What the policy knows of a model. Only the policy changes it."""

    need: MemoryBytes
    #: None: until another model needs the memory.
    keep_alive_seconds: float | None
    #: Stays in memory once it is loaded.
    pinned: bool = False
    stage: Stage = Stage.UNLOADED
    jobs: int = 0
    used_at: float = 0.0
    loading_since: float = 0.0
    #: How long its last load took.
    load_seconds: float = 0.0
    #: Its last caller came within ``load_seconds`` after the job before.
    is_asked_soon: bool = False
    #: When it last made room for others.
    swapped_at: deque[float] = field(default_factory=lambda: deque(maxlen=MAX_SWAPS + 1))
    #: Gets no new jobs until the claimant is served.
    closed: bool = False
    failures: int = 0
    retry_at: float = 0.0
    why_failed: str = ""

    @property
    def holds(self) -> MemoryBytes:
        return _NOTHING if self.stage is Stage.UNLOADED else self.need

    @property
    def stays(self) -> bool:
        return self.pinned and self.stage in (Stage.LOADING, Stage.LOADED)

    @property
    def may_go(self) -> bool:
        """Whether it can be unloaded, now or after its jobs."""
        return self.stage is Stage.LOADED and not self.pinned


@dataclass(frozen=True, slots=True)
class _WaitingForModel:
    caller: int
    model: ModelName
    #: By the clock of turns.
    since: float


class ModelCachePolicy:
    """Has one owner, which carries out the returned decisions at once and in order."""

    def __init__(self, budget: MemoryBytes, swap_seconds: float = 0.0) -> None:
        self.budget = budget
        self._swap_seconds = swap_seconds
        #: The clock of turns stands still during loads and unloads, if there are turns.
        self._clock = self._clock_read_at = 0.0
        self._clock_stands = False
        #: When the last model was loaded, by the clock of turns.
        self._turn_since = 0.0
        self.models: dict[ModelName, ManagedModel] = {}
        #: In order of arrival; the models' QueueLimits bound it.
        self._waiting: list[_WaitingForModel] = []

    # --- facts ------------------------------------------------------------------------------------------------------------

    def add(self, model: ModelName, need: MemoryBytes, keep_alive_seconds: float | None = None, *, pinned: bool = False) -> ManagedModel:
        added = self.models[model] = ManagedModel(need, keep_alive_seconds, pinned)
        return added

    def remove(self, model: ModelName) -> None:
        """Forget a model that is unloaded and has no callers."""
        del self.models[model]

    def set_need(self, model: ModelName, need: MemoryBytes) -> None:
        """Update a model's need, unless it is in memory."""
        known = self.models[model]
        if known.stage is Stage.UNLOADED:
            known.need = need

    def wanted(self, model: ModelName, caller: int, now: float) -> list[Decision]:
        """A job arrived. The caller is admitted or refused, now or later, unless it is ``withdrawn`` first."""
        known = self.models[model]
        if not known.jobs and all(waiting.model != model for waiting in self._waiting):
            known.is_asked_soon = now - known.used_at <= known.load_seconds
        self._read_clock(now)
        self._waiting.append(_WaitingForModel(caller, model, self._clock))
        return list(self._advance(now))

    def withdrawn(self, caller: int, now: float) -> list[Decision]:
        """A waiting caller is gone."""
        self._waiting = [waiting for waiting in self._waiting if waiting.caller != caller]
        return list(self._advance(now))

    def finished(self, model: ModelName, now: float) -> list[Decision]:
        """An admitted job has ended."""
        known = self.models[model]
        known.jobs -= 1
        known.used_at = now
        return list(self._advance(now))

    def loaded(self, model: ModelName, now: float) -> list[Decision]:
        known = self.models[model]
        known.stage, known.used_at, known.failures, known.why_failed = Stage.LOADED, now, 0, ""
        known.load_seconds, self._turn_since = now - known.loading_since, self._clock
        return list(self._advance(now))

    def load_failed(self, model: ModelName, reason: str, now: float) -> list[Decision]:
        """The load failed, or the engine gave up; the model's memory is free."""
        known = self.models[model]
        known.stage, known.closed = Stage.UNLOADED, False
        known.failures += 1
        known.why_failed = reason
        known.retry_at = inf if known.failures >= MAX_FAILURES else now + LOAD_BACKOFF.pause(known.failures)
        return list(self._advance(now))

    def unloaded(self, model: ModelName, need: MemoryBytes, now: float) -> list[Decision]:
        """``need``: of its next load."""
        known = self.models[model]
        known.stage, known.need = Stage.UNLOADED, need
        return list(self._advance(now))

    def tick(self, now: float) -> list[Decision]:
        """Check what depends on the time: keep-alives, overdue claimants and retries of failed loads."""
        return [*self._recheck(now), *self._advance(now)]

    # --- commands -----------------------------------------------------------------------------------------------------------

    def preload(self, model: ModelName, now: float) -> list[Decision]:
        """Load a model if it fits without unloading another."""
        known = self.models[model]
        return [self._load(model, now)] if self._may_load(known, now) else []

    def retry(self, model: ModelName, now: float) -> list[Decision]:
        """Load a rechecked model, unless a caller waits for the free memory."""
        return self.preload(model, now) if self.models[model].why_failed and not self._waiting else []

    def reset_failures(self, model: ModelName) -> None:
        """Allow a retry at once, because a person requested it."""
        known = self.models[model]
        known.failures, known.retry_at, known.why_failed = 0, 0.0, ""

    def pin(self, model: ModelName, *, pinned: bool) -> None:
        self.models[model].pinned = pinned

    def unload(self, model: ModelName) -> list[Decision]:
        """Unload an idle model; does nothing if it isn't loaded or has jobs."""
        known = self.models[model]
        if known.stage is not Stage.LOADED or known.jobs:
            return []
        return [self._unload(model)]

    # --- queries ------------------------------------------------------------------------------------------------------------

    def used(self) -> MemoryBytes:
        return sum((known.holds for known in self.models.values()), _NOTHING)

    def unavailable_reason(self, model: ModelName, now: float) -> str:
        """Return why a load would be refused or is likely to fail; empty if it may succeed."""
        if (refusal := self._refusal(model, now)) is not None:
            return refusal[0]
        known = self.models[model]
        # If other models hold the memory, only a request unloads them, so the model must be offered.
        return known.why_failed if known.need.fits(self._free()) else ""

    def busy_models(self) -> tuple[ModelName, ...]:
        """Return the models whose jobs delay the claimants."""
        return tuple(name for name, known in self.models.items() if known.may_go and known.jobs)

    def thrashing(self, now: float) -> list[ModelName]:
        """Return the models that make room for others too often."""
        many = [(name, known.swapped_at) for name, known in self.models.items() if len(known.swapped_at) > MAX_SWAPS]
        return [name for name, swapped_at in many if now - swapped_at[0] <= SWAPS_SECONDS]

    # --- the rules ------------------------------------------------------------------------------------------------------------

    def _advance(self, now: float) -> Iterator[Decision]:
        self._read_clock(now)
        self._reopen()
        yield from self._admit_or_refuse(now)
        yield from self._make_room(now)
        yield from self._expire(now)
        switching = (known.stage in (Stage.LOADING, Stage.UNLOADING) for known in self.models.values())
        self._clock_stands = self._swap_seconds > 0 and any(switching)

    def _read_clock(self, now: float) -> None:
        if not self._clock_stands:
            self._clock += now - self._clock_read_at
        self._clock_read_at = now

    def _admit_or_refuse(self, now: float) -> Iterator[Decision]:
        """Admit callers whose model is loaded, and refuse those whose model can't be."""
        left: list[_WaitingForModel] = []
        for waiting in self._waiting:
            known = self.models[waiting.model]
            if known.stage is Stage.LOADED and not known.closed:
                known.jobs += 1
                known.used_at = now
                yield AdmitStep(waiting.caller)
            elif known.stage is Stage.UNLOADED and (refusal := self._refusal(waiting.model, now)) is not None:
                yield RefuseStep(waiting.caller, *refusal)
            else:
                left.append(waiting)
        self._waiting = left

    def _make_room(self, now: float) -> Iterator[Decision]:
        is_blocked = False
        for claimant in self._claimants():
            known = self.models[claimant.model]
            if known.need.fits(self._free()):
                yield self._load(claimant.model, now)
            elif not is_blocked:
                # Room is only made for the first; the others may use free memory that it doesn't need.
                is_blocked = True
                yield from self._clear(claimant, now)
                if self._is_overdue(claimant) or self._lacking(claimant).fits(_NOTHING):
                    return

    def _claimants(self) -> list[_WaitingForModel]:
        """Return the first caller of each model that is neither loaded nor loading, in order."""
        first: dict[ModelName, _WaitingForModel] = {}
        for waiting in self._waiting:
            if self.models[waiting.model].stage is Stage.UNLOADED:
                first.setdefault(waiting.model, waiting)
        return list(first.values())

    def _reopen(self) -> None:
        """Open closed models again when no overdue claimant needs their memory."""
        if any(self._is_overdue(claimant) and not self._lacking(claimant).fits(_NOTHING) for claimant in self._claimants()):
            return
        for known in self.models.values():
            known.closed = False

    def _clear(self, claimant: _WaitingForModel, now: float) -> Iterator[Decision]:
        """Unload idle models if that frees enough; else close busy ones for an overdue claimant."""
        lacking, is_overdue = self._lacking(claimant), self._is_overdue(claimant)
        if lacking.fits(_NOTHING):
            return
        idle = self._choose((name for name in self._candidates() if self._may_go_now(name, now, is_overdue=is_overdue)), lacking)
        if lacking.fits(sum((self.models[name].need for name in idle), _NOTHING)):
            for name in idle:
                self.models[name].swapped_at.append(now)
                yield self._unload(name, claimant.model)
        elif is_overdue:
            chosen = self._choose(self._candidates(), lacking)
            for name, known in self.models.items():
                known.closed = name in chosen

    def _recheck(self, now: float) -> Iterator[Decision]:
        for name, known in self.models.items():
            if known.why_failed and not self._waiting and self._may_load(known, now):
                yield RecheckStep(name)

    def _may_load(self, known: ManagedModel, now: float) -> bool:
        return known.stage is Stage.UNLOADED and known.need.fits(self._free()) and known.retry_at <= now

    def _is_overdue(self, claimant: _WaitingForModel) -> bool:
        if not self._swap_seconds:
            return self._clock - claimant.since >= PATIENCE_SECONDS
        begun = max(self._turn_since, claimant.since)
        turns = enumerate((each for each in self._claimants() if each.since >= claimant.since), start=1)
        return any(self._clock - begun >= (each.since + self._swap_seconds - begun) / number for number, each in turns)

    def _may_go_now(self, model: ModelName, now: float, *, is_overdue: bool) -> bool:
        """Whether the model is idle, and its next caller isn't worth waiting for."""
        known = self.models[model]
        is_awaited = self._swap_seconds > 0 and known.is_asked_soon and now - known.used_at < known.load_seconds
        return not known.jobs and (is_overdue or not is_awaited)

    def _candidates(self) -> list[ModelName]:
        """Return the models to unload, in order: closed ones first, or else busy models would be closed in turns forever."""
        may_go = [name for name, known in self.models.items() if known.may_go]
        return sorted(may_go, key=lambda name: (not self.models[name].closed, self.models[name].used_at))

    def _choose(self, names: Iterable[ModelName], lacking: MemoryBytes) -> list[ModelName]:
        """Take models until they free enough memory, or all that help if even that is too little."""
        chosen = []
        for name in names:
            need = self.models[name].need
            if (lacking.ram > 0 and need.ram) or (lacking.vram > 0 and need.vram):
                lacking -= need
                chosen.append(name)
        return chosen

    def _lacking(self, claimant: _WaitingForModel) -> MemoryBytes:
        """Return the need beyond the free memory and what unloading models will free."""
        unloading = sum((known.holds for known in self.models.values() if known.stage is Stage.UNLOADING), _NOTHING)
        return self.models[claimant.model].need - self._free() - unloading

    def _free(self) -> MemoryBytes:
        return self.budget - self.used()

    def _expire(self, now: float) -> Iterator[Decision]:
        for name, known in self.models.items():
            keep_alive = known.keep_alive_seconds
            if keep_alive is not None and known.may_go and not known.jobs and now - known.used_at >= keep_alive:
                yield self._unload(name)

    def _load(self, model: ModelName, now: float) -> LoadModelStep:
        known = self.models[model]
        known.stage, known.loading_since = Stage.LOADING, now
        return LoadModelStep(model)

    def _unload(self, model: ModelName, makes_room_for: ModelName | None = None) -> UnloadModelStep:
        known = self.models[model]
        known.stage, known.closed = Stage.UNLOADING, False
        return UnloadModelStep(model, makes_room_for)

    def _refusal(self, model: ModelName, now: float) -> tuple[str, float | None] | None:
        """Return why the model can't be loaded, and when a retry may help."""
        known = self.models[model]
        need = known.need
        if not need.fits(self.budget):
            return f"needs {need}, but models may use {self.budget} on this machine", None
        pinned = {name: other for name, other in self.models.items() if other.stays and name != model}
        held = sum((other.holds for other in pinned.values()), _NOTHING)
        if not need.fits(self.budget - held):
            return (
                f"needs {need}, but {', '.join(pinned)} is pinned with {held} of the {self.budget} that models may use on this machine"
            ), None
        if now < known.retry_at:
            return known.why_failed, None if known.retry_at == inf else known.retry_at - now
        return None
