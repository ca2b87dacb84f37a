"""Announces the worker's models and load to the mesh, and whether the owner of the machine has paused it."""

import asyncio
import itertools
from collections.abc import Callable
from functools import partial
from pathlib import Path

from prometheus_client import Gauge

from services.inference.backend_interface import Backend, WarningTopic
from services.inference.engine_speed import EngineSpeed
from shared.api import inference
from shared.api.inference import ModelStatus
from shared.node import Node
from shared.protocol import directory
from shared.telemetry import logs
from shared.telemetry.answer_instruments import DraftResult
from shared.types import ModelName

LOOK_SECONDS = 0.5
#: After an update, a change of the load waits for so long, because it changes with each start and end of a request.
GATHER_SECONDS = 0.02
PAUSED = "paused by its owner"
#: What an announcement needs for everything but its models.
REST_BYTES = 2010
MAX_REASON_CHARACTERS = 500
#: Of the engine, the models and missing libraries together.
MAX_WARNING_CHARACTERS = 450

log = logs.get()


class Announcements:
    """Updates the node's announcement and gauges whenever the backend changes: the backend's watcher."""

    def __init__(
        self,
        node: Node,
        pause_file: Path | None = None,
        *,
        queue: int = directory.DEFAULT_QUEUE,
        accepts_models: Callable[[], bool] = lambda: True,
    ) -> None:
        """``queue`` and ``accepts_models``: see ``WorkerLoad``."""
        self._node = node
        self._queue = queue
        self._accepts_models = accepts_models
        self._free_bytes = 0
        self._pause_file = pause_file
        self.is_paused = pause_file is not None and pause_file.exists()
        #: Why there is no model, while there is none.
        self._no_models = "it has no model to serve"
        self.backend: Backend | None = None
        self._pulls: tuple[directory.ModelPull, ...] = ()
        self._assigned: tuple[ModelName, ...] = ()
        self._refused: tuple[ModelName, ...] = ()
        self._warnings: dict[WarningTopic, str] = {}
        self._missing = ""
        self._notice = ""
        #: For the machine's owner; see ``inform``.
        self.notices: tuple[str, ...] = ()
        #: Runs while changes of the load wait.
        self._timer: asyncio.TimerHandle | None = None
        self._has_changed = False
        #: The number of models that didn't fit the last announcement.
        self._left_out = 0
        #: Models that have gauges; those of the speed ask the engines at each scrape.
        self._measured: set[ModelName] = set()
        #: Why models are not trusted.
        self._distrust: dict[ModelName, str] = {}

    async def follow_pause(self, look_seconds: float = LOOK_SECONDS) -> None:
        """Announce when the owner pauses or resumes the worker; runs until cancelled. Returns at once without a pause file."""
        while self._pause_file is not None:
            await asyncio.sleep(look_seconds)
            if (is_paused := self._pause_file.exists()) != self.is_paused:
                self.is_paused = is_paused
                self.changed()

    async def follow_machine(
        self,
        read_pulls: Callable[[], tuple[directory.ModelPull, ...]],
        read_assigned: Callable[[], tuple[ModelName, ...]],
        read_refused: Callable[[], tuple[ModelName, ...]],
        read_missing: Callable[[], str],
    ) -> None:
        """Announce the downloads, the assigned and the refused models and the missing libraries that these return, which block; runs until
        cancelled."""
        while True:
            found = await asyncio.to_thread(lambda: (read_pulls(), read_assigned(), read_refused(), read_missing()))
            if found != (self._pulls, self._assigned, self._refused, self._missing):
                self._pulls, self._assigned, self._refused, self._missing = found
                self.changed()
            await asyncio.sleep(directory.ANNOUNCE_SECONDS)

    def changed(self) -> None:
        """Update at once, because gateways would ask in vain for a model that rests or is gone."""
        if self._timer is not None:
            self._timer.cancel()
        self._has_changed = True
        self._update()

    def load_changed(self) -> None:
        self._has_changed = True
        if self._timer is None:
            self._update()

    def _update(self) -> None:
        self._timer = None
        if self.backend is None or not self._has_changed:
            return
        self._has_changed = False
        self._timer = asyncio.get_running_loop().call_later(GATHER_SECONDS, self._update)
        statuses = self.backend.models()
        # Adapters share the slots of their model.
        models = [status for status in statuses if status.parent is None]
        ready = [status for status in models if status.state in inference.SERVED]
        self._node.offer(
            models=self._fitting(tuple(_offer(name, status) for status in statuses for name in (status.model_id, *status.aliases))),
            load=directory.WorkerLoad(
                slots=sum(status.slots for status in ready),
                running=sum(status.running for status in models),
                queued=sum(status.queued for status in models),
                expected_wait_seconds=self.backend.expected_wait_seconds(),
                queue=self._queue,
                free_bytes=0 if statuses or self.is_paused else self._free_bytes,
                accepts_models=self._accepts_models(),
            ),
            not_ready=self.why_not_ready(statuses, is_paused=self.is_paused)[:MAX_REASON_CHARACTERS],
            pulls=self._pulls,
            assigned=self._assigned,
            refused=self._refused,
            warning="; ".join(filter(None, (*self._warnings.values(), self._missing)))[:MAX_WARNING_CHARACTERS],
            notice=self._notice[: directory.MAX_PROBLEM_CHARACTERS],
        )
        for status in statuses:
            self._measure(status)
        for model in self._measured - {status.model_id for status in statuses}:
            self._forget(model)

    def why_not_ready(self, statuses: tuple[ModelStatus, ...], *, is_paused: bool) -> str:
        """Say why this worker takes no prompts, for its announcement and /readyz; empty if one of its models does."""
        if is_paused:
            return PAUSED
        if any(status.state in inference.SERVED for status in statuses):
            return ""
        return directory.say_reasons(((status.model_id, status.detail) for status in statuses), ": ") or self._no_models

    def lack_models(self, reason: str) -> None:
        """Announce why this worker has no model, while it has none."""
        before, self._no_models = self._no_models, reason
        if self._no_models != before:
            self.changed()

    def inform(self, summary: str, lines: tuple[str, ...]) -> None:
        """See ``WorkerWatcher``."""
        self.notices = lines
        if summary != self._notice:
            self._notice = summary
            self.changed()

    def wait_for_models(self, reason: str) -> None:
        self.lack_models(f"waiting for models: {reason}")

    def _fitting(self, offers: tuple[directory.ModelOffer, ...]) -> tuple[directory.ModelOffer, ...]:
        """Leave out the last models if an announcement has no room for them: no node would read it."""
        ends = itertools.accumulate(len(directory.encode(offer)) for offer in offers)
        room = directory.MAX_ANNOUNCEMENT_BYTES - REST_BYTES - sum(len(name) + 3 for name in (*self._assigned, *self._refused))
        fitting = offers[: sum(end <= room for end in ends)]
        left_out = [offer.name for offer in offers[len(fitting) :]]
        if len(left_out) > self._left_out:
            log.warning("models_not_served", models=left_out, reason=f"an announcement has no room for more than {len(fitting)} models")
        self._left_out = len(left_out)
        return fitting

    def memory_found(self, free_bytes: int) -> None:
        self._free_bytes = free_bytes
        self.changed()

    def restarting(self, model: ModelName) -> None:
        self._node.metrics.engine_restarts.labels(model=model).inc()

    def parse_failed(self, model: ModelName) -> None:
        self._node.metrics.answer_parse_failures.labels(model=model).inc()

    def warn(self, text: str, topic: WarningTopic) -> None:
        if text != self._warnings.get(topic, ""):
            self._warnings[topic] = text
            self.changed()

    def swapped(self, model: ModelName) -> None:
        self._node.metrics.model_swaps.labels(model=model).inc()

    def images_encoded(self, model: ModelName, seconds: float) -> None:
        self._node.metrics.image_seconds.labels(model=model).inc(seconds)

    def preempted(self, model: ModelName, answers: int) -> None:
        self._node.metrics.batch_preempted.labels(model=model).inc(answers)

    def drafted(self, model: ModelName, tokens: int, accepted: int) -> None:
        for result, count in ((DraftResult.ACCEPTED, accepted), (DraftResult.REJECTED, tokens - accepted)):
            self._node.metrics.drafted_tokens.labels(model=model, result=result).inc(count)

    def _measure(self, status: ModelStatus) -> None:
        metrics, model = self._node.metrics, status.model_id
        is_new = model not in self._measured
        # Prometheus only sees a counter grow that it has seen before.
        counters = (metrics.engine_restarts, metrics.answer_parse_failures, metrics.image_seconds, metrics.model_swaps)
        for counter in (*counters, metrics.model_quarantines):
            counter.labels(model=model).inc(0)
        self.drafted(model, 0, 0)
        self.preempted(model, 0)
        metrics.worker_up.labels(model=model).set(status.state in inference.SERVED)
        if self._distrust.get(model, "") != status.distrust:
            self._distrust[model] = status.distrust
            metrics.model_untrusted.remove_by_labels({"model": model})
            if status.distrust:
                metrics.model_untrusted.labels(model=model, reason=status.distrust).set(1)
        self._measured.add(model)
        if status.parent is not None:
            return
        metrics.worker_slots.labels(model=model, state="busy").set(status.running)
        metrics.worker_slots.labels(model=model, state="free").set(status.slots - status.running)
        metrics.queue_depth.labels(model=model).set(status.queued)
        if is_new and self.backend is not None and self.backend.has_engines:
            look = partial(self.backend.figures, model)
            for gauge, name in self._figures():
                gauge.labels(model=model).set_function(partial(_figure, look, name))

    def _forget(self, model: ModelName) -> None:
        metrics = self._node.metrics
        self._measured.discard(model)
        self._distrust.pop(model, None)
        for gauge in (
            metrics.worker_up,
            metrics.worker_slots,
            metrics.queue_depth,
            metrics.model_untrusted,
            *(gauge for gauge, _ in self._figures()),
        ):
            gauge.remove_by_labels({"model": model})

    def _figures(self) -> tuple[tuple[Gauge, str], ...]:
        """Return the gauges of an engine's figures."""
        metrics = self._node.metrics
        return (
            (metrics.engine_overhead, "overhead"),
            (metrics.engine_step_seconds, "step_seconds"),
            (metrics.engine_tokens_per_second, "tokens_per_second"),
            (metrics.batch_step_share, "batch_share"),
            (metrics.model_cpu_seconds, "cpu_seconds"),
            (metrics.model_memory, "ram_bytes"),
            (metrics.model_vram, "vram_bytes"),
            (metrics.prompt_cache_bytes, "cache_bytes"),
            (metrics.prompt_cache_hits, "cache_hits"),
        )


def _figure(look: Callable[[], EngineSpeed], name: str) -> float:
    return float(getattr(look(), name))


def _offer(name: ModelName, status: ModelStatus) -> directory.ModelOffer:
    return directory.ModelOffer(
        name,
        status.context_tokens,
        status.digest,
        ready=status.state in inference.SERVED,
        only_embeds=status.only_embeds,
        loaded=status.state is not inference.ModelState.UNLOADED,
        slots=status.slots,
        busy=status.running + status.queued,
        provider=status.provider,
        only_moderates=status.only_moderates,
        rests=status.rests,
        region=status.region,
        abilities=status.abilities,
        is_adapter=status.parent is not None,
        is_upstream=status.is_upstream,
        upstream_model=status.upstream_model,
        can_suit_agents=status.can_suit_agents,
        numerics=status.numerics,
        problem=status.detail[: directory.MAX_PROBLEM_CHARACTERS] if status.state is inference.ModelState.FAILED else "",
        batch_busy=status.batch_busy,
        yields=status.yields,
        quantization=status.quantization,
    )
