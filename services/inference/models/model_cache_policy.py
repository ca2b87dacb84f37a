"""Which models are in memory: who is loaded, who makes room, who waits, who is told no.  Pure; facts come with the time.

The rules:

- What is loaded, being loaded or being unloaded never needs more than the budget.
- A model with a running job, and a pinned one, is never unloaded.
- Callers wait in the order in which they came. The first whose model is not there is the *claimant*: idle models are
  unloaded for it, the least recently used first, as soon as that makes enough room.
- While a claimant waits for busy models, others are served as before, and may load what fits beside them. After
  PATIENCE_SECONDS its turn has come: the models that must go are *closed*, which means that their jobs end and new ones wait
  behind the claimant, and nothing else is loaded. So nobody waits longer than their patience and the jobs that then run.
- A model that cannot fit, alone or beside the pinned ones, is refused with the numbers.
- A load that failed is not tried again for a while that doubles; callers who ask meanwhile get the reason. Then it is tried again
  without a caller, where there is room: until a load succeeds, nobody is sent to this model.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from math import inf

from services.inference.models.quantities import show_bytes
from shared.timing.backoff import Backoff
from shared.types import ModelName

#: An ordinary answer has ended by then; longer ones are not waited for by letting still more of them begin.
PATIENCE_SECONDS = 15.0
#: After a load that failed, doubling with each; a broken model must not keep the disk busy.
LOAD_BACKOFF = Backoff(first_seconds=5.0, longest_seconds=300.0)
#: Loads that failed in a row, after which only a person's word loads it again.
MOST_FAILURES = 5


class Stage(Enum):
    UNLOADED = "unloaded"
    LOADING = "loading"
    LOADED = "loaded"
    UNLOADING = "unloading"


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheTerms:
    """What a model needs, and how long it stays."""

    need_bytes: int
    #: None: until another model needs the room.
    keep_alive_seconds: float | None = None


# --- decisions: what the shell does, in this order ------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class LoadModelStep:
    """Start it; answer with ``loaded`` or ``load_failed``."""

    model: ModelName


@dataclass(frozen=True, slots=True)
class UnloadModelStep:
    """End it, nobody uses it; answer with ``unloaded``."""

    model: ModelName


@dataclass(frozen=True, slots=True)
class AdmitStep:
    """The caller's model is there, and counts its job until ``finished``."""

    caller: int


@dataclass(frozen=True, slots=True)
class RefuseStep:
    caller: int
    reason: str
    #: None: asking again does not help.
    retry_after_seconds: float | None = None


@dataclass(frozen=True, slots=True)
class RecheckStep:
    """Its load failed, and it may be tried again: check its file as before the first load, and then call ``retry``."""

    model: ModelName


Decision = LoadModelStep | UnloadModelStep | AdmitStep | RefuseStep | RecheckStep


@dataclass(slots=True)
class _CachedModel:
    terms: CacheTerms
    stage: Stage = Stage.UNLOADED
    jobs: int = 0
    used_at: float = 0.0
    pinned: bool = False
    #: No new jobs until the claimant has what it waits for.
    closed: bool = False
    failures: int = 0
    retry_at: float = 0.0
    why_failed: str = ""

    @property
    def holds_bytes(self) -> int:
        return 0 if self.stage is Stage.UNLOADED else self.terms.need_bytes

    @property
    def stays(self) -> bool:
        return self.pinned and self.stage in (Stage.LOADING, Stage.LOADED)

    @property
    def may_go(self) -> bool:
        """Whether it can be made to leave, now or when its jobs end."""
        return self.stage is Stage.LOADED and not self.pinned


@dataclass(frozen=True, slots=True)
class _WaitingForModel:
    caller: int
    model: ModelName
    since: float


class ModelCachePolicy:
    """The state has one owner, who does what each method returns, at once and in order."""

    def __init__(self, budget_bytes: int, terms: Mapping[ModelName, CacheTerms]) -> None:
        self.budget_bytes = budget_bytes
        self._models = {name: _CachedModel(one) for name, one in terms.items()}
        #: In the order in which they came; bounded by whoever bounds the callers.
        self._waiting: list[_WaitingForModel] = []

    # --- facts ------------------------------------------------------------------------------------------------------------

    def learn(self, model: ModelName, terms: CacheTerms) -> None:
        """What is new about a model; one that is in memory stays counted as it was."""
        known = self._models[model]
        if known.stage is Stage.UNLOADED:
            known.terms = terms

    def wanted(self, model: ModelName, caller: int, now: float) -> list[Decision]:
        """A job came. The caller is admitted or refused, now or later, unless it is ``withdrawn`` before."""
        self._waiting.append(_WaitingForModel(caller, model, now))
        return list(self._advance(now))

    def withdrawn(self, caller: int, now: float) -> list[Decision]:
        """A caller that waits has gone."""
        self._waiting = [waiting for waiting in self._waiting if waiting.caller != caller]
        return list(self._advance(now))

    def finished(self, model: ModelName, now: float) -> list[Decision]:
        """A job of an admitted caller is over."""
        known = self._models[model]
        known.jobs -= 1
        known.used_at = now
        return list(self._advance(now))

    def loaded(self, model: ModelName, now: float) -> list[Decision]:
        known = self._models[model]
        known.stage, known.used_at, known.failures, known.why_failed = Stage.LOADED, now, 0, ""
        return list(self._advance(now))

    def load_failed(self, model: ModelName, reason: str, now: float) -> list[Decision]:
        """It could not be loaded, or its engine is gone for good; it holds no memory any more."""
        known = self._models[model]
        known.stage, known.closed = Stage.UNLOADED, False
        known.failures += 1
        known.why_failed = reason
        known.retry_at = inf if known.failures >= MOST_FAILURES else now + LOAD_BACKOFF.pause(known.failures)
        return list(self._advance(now))

    def unloaded(self, model: ModelName, now: float) -> list[Decision]:
        self._models[model].stage = Stage.UNLOADED
        return list(self._advance(now))

    def tick(self, now: float) -> list[Decision]:
        """Time has passed: keep-alives end, and so does patience; loads that failed are tried again."""
        return [*self._recheck(now), *self._advance(now)]

    # --- orders of people ---------------------------------------------------------------------------------------------------

    def preload(self, model: ModelName, now: float) -> list[Decision]:
        """Load it if there is room beside what is there; nothing makes way for it."""
        known = self._models[model]
        if not self._may_load(known, now):
            return []
        known.stage = Stage.LOADING
        return [LoadModelStep(model)]

    def retry(self, model: ModelName, now: float) -> list[Decision]:
        """Load a model that was rechecked, unless somebody waits: what is free belongs to those that wait."""
        return self.preload(model, now) if self._models[model].why_failed and not self._waiting else []

    def forgive(self, model: ModelName) -> None:
        """Try a model again that failed; a person has mended it."""
        known = self._models[model]
        known.failures, known.retry_at, known.why_failed = 0, 0.0, ""

    def pin(self, model: ModelName, *, pinned: bool) -> None:
        """While pinned, it stays once it is loaded."""
        self._models[model].pinned = pinned

    def unload(self, model: ModelName) -> list[Decision]:
        """Take it out of memory; nothing happens while it is busy, on its way, or not there."""
        known = self._models[model]
        if known.stage is not Stage.LOADED or known.jobs:
            return []
        return [self._unload(model)]

    # --- questions ----------------------------------------------------------------------------------------------------------

    def stage(self, model: ModelName) -> Stage:
        return self._models[model].stage

    def jobs(self, model: ModelName) -> int:
        return self._models[model].jobs

    def is_pinned(self, model: ModelName) -> bool:
        return self._models[model].pinned

    def need_bytes(self, model: ModelName) -> int:
        return self._models[model].terms.need_bytes

    def used_bytes(self) -> int:
        """What is counted against the budget."""
        return sum(known.holds_bytes for known in self._models.values())

    def why_not(self, model: ModelName, now: float) -> str:
        """Why nobody should count on this model: a load would be refused now, or the last one failed and only another try can tell."""
        refusal = self._refusal(model, now)
        if refusal is not None:
            return refusal[0]
        known = self._models[model]
        # Where others hold its room nothing but a request makes them leave, so it has to be on offer.
        return known.why_failed if known.terms.need_bytes <= self._free_bytes() else ""

    def in_the_way(self) -> tuple[ModelName, ...]:
        """The busy models that whoever waits for room waits for."""
        return tuple(name for name, known in self._models.items() if known.may_go and known.jobs)

    # --- the rules ------------------------------------------------------------------------------------------------------------

    def _advance(self, now: float) -> Iterator[Decision]:
        """Everything that can be decided now."""
        self._reopen(now)
        yield from self._answer(now)
        yield from self._make_room(now)
        yield from self._expire(now)

    def _answer(self, now: float) -> Iterator[Decision]:
        """Admit whose model is there; refuse whose model cannot come."""
        left: list[_WaitingForModel] = []
        for waiting in self._waiting:
            known = self._models[waiting.model]
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
            known = self._models[claimant.model]
            if known.terms.need_bytes <= self._free_bytes():
                known.stage = Stage.LOADING
                yield LoadModelStep(claimant.model)
            elif not is_blocked:
                # Only for the first is room made; others may take what is free, unless it is his already.
                is_blocked = True
                yield from self._clear(claimant, now)
                if self._is_overdue(claimant, now) or self._lacking_bytes(claimant) <= 0:
                    return

    def _claimants(self) -> list[_WaitingForModel]:
        """Who waits for a model that nobody loads yet, once for each model, in order."""
        first: dict[ModelName, _WaitingForModel] = {}
        for waiting in self._waiting:
            if self._models[waiting.model].stage is Stage.UNLOADED:
                first.setdefault(waiting.model, waiting)
        return list(first.values())

    def _reopen(self, now: float) -> None:
        """Nothing stays closed for a claimant that has gone, or that fits without."""
        if any(self._is_overdue(claimant, now) and self._lacking_bytes(claimant) > 0 for claimant in self._claimants()):
            return
        for known in self._models.values():
            known.closed = False

    def _clear(self, claimant: _WaitingForModel, now: float) -> Iterator[Decision]:
        """Unload what is idle if that is enough, and close what is busy if it is time."""
        lacking = self._lacking_bytes(claimant)
        if lacking <= 0:
            # What is on its way out makes room enough.
            return
        idle = self._enough((name for name in self._leavers() if not self._models[name].jobs), lacking)
        if sum(self._models[name].terms.need_bytes for name in idle) >= lacking:
            for name in idle:
                yield self._unload(name)
        elif self._is_overdue(claimant, now):
            chosen = self._enough(self._leavers(), lacking)
            for name, known in self._models.items():
                known.closed = name in chosen

    def _recheck(self, now: float) -> Iterator[Decision]:
        for name, known in self._models.items():
            if known.why_failed and not self._waiting and self._may_load(known, now):
                yield RecheckStep(name)

    def _may_load(self, known: _CachedModel, now: float) -> bool:
        return known.stage is Stage.UNLOADED and known.terms.need_bytes <= self._free_bytes() and known.retry_at <= now

    def _is_overdue(self, claimant: _WaitingForModel, now: float) -> bool:
        return now - claimant.since >= PATIENCE_SECONDS

    def _leavers(self) -> list[ModelName]:
        """Who may have to go, in this order: who was chosen before stays chosen, or busy models would take turns for ever."""
        may_go = [name for name, known in self._models.items() if known.may_go]
        return sorted(may_go, key=lambda name: (not self._models[name].closed, self._models[name].used_at))

    def _enough(self, names: Iterable[ModelName], lacking: int) -> list[ModelName]:
        """The first of them that make enough room together; all of them where even that is too little."""
        chosen = []
        for name in names:
            if lacking <= 0:
                break
            lacking -= self._models[name].terms.need_bytes
            chosen.append(name)
        return chosen

    def _lacking_bytes(self, claimant: _WaitingForModel) -> int:
        """What it needs beyond what is free and what is on its way out."""
        leaving = sum(known.holds_bytes for known in self._models.values() if known.stage is Stage.UNLOADING)
        return self._models[claimant.model].terms.need_bytes - self._free_bytes() - leaving

    def _free_bytes(self) -> int:
        return self.budget_bytes - self.used_bytes()

    def _expire(self, now: float) -> Iterator[Decision]:
        """Idle models whose time is over."""
        for name, known in self._models.items():
            keep_alive = known.terms.keep_alive_seconds
            if keep_alive is None or not known.may_go or known.jobs:
                continue
            if now - known.used_at >= keep_alive:
                yield self._unload(name)

    def _unload(self, model: ModelName) -> UnloadModelStep:
        known = self._models[model]
        known.stage, known.closed = Stage.UNLOADING, False
        return UnloadModelStep(model)

    def _refusal(self, model: ModelName, now: float) -> tuple[str, float | None] | None:
        """Why this model cannot be loaded, and when asking again may help."""
        known = self._models[model]
        need = known.terms.need_bytes
        if need > self.budget_bytes:
            return f"needs {show_bytes(need)}, and models may have {show_bytes(self.budget_bytes)} on this machine", None
        pinned = {name: other for name, other in self._models.items() if other.stays and name != model}
        held = sum(other.holds_bytes for other in pinned.values())
        if need > self.budget_bytes - held:
            return (
                f"needs {show_bytes(need)}, and {', '.join(pinned)} is pinned with {show_bytes(held)} "
                f"of the {show_bytes(self.budget_bytes)} that models may have on this machine"
            ), None
        if now < known.retry_at:
            return known.why_failed, None if known.retry_at == inf else known.retry_at - now
        return None
