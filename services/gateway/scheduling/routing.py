"""Which model a request means, and what it needs of the worker that runs it. Pure; the directory brings the workers."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from shared import errors
from shared.api.gateway import ServedModel
from shared.discovery.directory import DirectoryEntry
from shared.types import ModelName, NodeId, TenantId

#: Repeats its prompt, for load tests: it comes last, so that it becomes nobody's default by its name.
_SYNTHETIC = "echo"

#: What Ollama calls a model of which no version is named.
_LATEST = ":latest"

MISSED_SECONDS = 10.0

_NO_WORKER_HINT = "see `aicli nodes`; start a worker with `aicli worker`"


@dataclass(frozen=True, slots=True)
class ModelNames:
    """What models may be called."""

    aliases: Mapping[str, str]
    #: None means: the first that is served.
    default: str | None


@dataclass(frozen=True, slots=True)
class WorkerRequirements:
    """What a request needs of the worker that runs it."""

    model: ModelName
    #: Whose prompts a worker sees.
    tenant: TenantId
    #: Whose turns it takes in the queue: an organization that shares its founder's limits waits as its founder.
    limited_as: TenantId
    #: How much work it is likely to be: tokens of the prompt, and the most of the answer.
    prompt_tokens: int
    max_tokens: int
    #: Names of the prompt's beginnings, the shortest first: a worker that has read one of them need not read it again.
    beginnings: tuple[bytes, ...] = ()
    #: Only a worker with this very file of the model may go on with an answer; None where any will do.
    digest: str | None = None
    #: Workers that have failed this request.
    not_on: frozenset[NodeId] = frozenset()


def served(workers: Iterable[DirectoryEntry], names: ModelNames) -> tuple[ModelName, ...]:
    """The models that somebody serves: the default first, then by name, the synthetic one and those without answers last."""
    offers = [offer for worker in workers for offer in worker.announcement.models if offer.ready]
    answering = {offer.name for offer in offers if not offer.only_embeds}
    default = ModelName(names.aliases.get(names.default, names.default)) if names.default else None
    found = {offer.name for offer in offers}
    return tuple(sorted(found, key=lambda name: (name != default, name not in answering, name == _SYNTHETIC, name)))


def catalogue(workers: Sequence[DirectoryEntry], names: ModelNames) -> tuple[ServedModel, ...]:
    """What is served, as a caller sees it."""
    offers = [(offer.name, offer.context_tokens) for worker in workers for offer in worker.announcement.models if offer.ready]
    return tuple(
        ServedModel(
            name=model,
            workers=sum(_serves(worker, model) for worker in workers),
            # What every worker of the model can take.
            context_tokens=min(tokens for name, tokens in offers if name == model),
            aliases=tuple(alias for alias, name in names.aliases.items() if name == model),
            only_embeds=not _answers(workers, model),
        )
        for model in served(workers, names)
    )


def resolve(wanted: ModelName | None, workers: Sequence[DirectoryEntry], names: ModelNames, *, just_started: bool = False) -> ModelName:
    """The served model that ``wanted`` means; nothing is substituted for one that is not served. ``name:latest`` and ``name`` are
    the same model, any other version is a model of its own.

    ``workers`` are all that are known: one that is gone still tells a missing worker from a misspelt model. Who has
    ``just_started`` cannot tell yet. Raises UnknownModel, or NotReachable where the model is known, or may be, but nobody can
    run it now.
    """
    usable = [worker for worker in workers if not worker.why_not]
    models = served(usable, names)
    if wanted is None and names.default is None:
        if not models:
            raise _nobody(workers)
        return models[0]
    asked = str(wanted or names.default)
    meanings = _meanings(asked, names.aliases)
    for model in meanings:
        if model in models:
            return model
    if not models:
        raise _nobody(workers)
    for model in meanings:
        if absent := [worker for worker in workers if _has(worker, model)]:
            raise errors.NotReachable(f"no worker can run {model} now: {_whys(absent)}", hint=_NO_WORKER_HINT)
    model = ModelName(names.aliases.get(asked, asked))
    if just_started:
        raise errors.NotReachable(
            f"no worker with the model {model!r} has been found yet: this gateway has just started", retry_after_seconds=1
        )
    through = f" (which {asked!r} is an alias of)" if model != asked else ""
    raise errors.UnknownModel(
        f"nobody serves the model {model!r}{through}; served now: {', '.join(models)}",
        hint="choose one of them, or give it this name by MODEL_ALIASES on the gateway",
    )


def least_context(model: ModelName, usable: Iterable[DirectoryEntry]) -> int:
    """What every worker of a served model can take, in tokens."""
    offers = [offer for worker in usable for offer in worker.announcement.models if offer.name == model and offer.ready]
    return min((offer.context_tokens for offer in offers), default=0)


def digest_of(model: ModelName, usable: Iterable[DirectoryEntry]) -> str:
    """Of the model's file; empty where there is none to show, or where workers differ."""
    digests = {offer.digest for worker in usable for offer in worker.announcement.models if offer.name == model and offer.ready}
    return digests.pop() if len(digests) == 1 else ""


def are_missed(workers: Iterable[DirectoryEntry], now: datetime) -> bool:
    """Whether one of them went so lately that it may be back at once: a link that is made anew, a server that is started again."""
    return any(not worker.alive and (now - worker.since).total_seconds() < MISSED_SECONDS for worker in workers)


def ensure_answers(model: ModelName, usable: Iterable[DirectoryEntry]) -> None:
    """Raises BadRequest where nobody who serves it lets it answer."""
    if not _answers(usable, model):
        raise errors.BadRequest(f"{model} gives embeddings and no answers", hint="ask for embeddings, or ask another model")


def _meanings(asked: str, aliases: Mapping[str, str]) -> tuple[ModelName, ...]:
    """The likeliest first. A model's own name comes before an alias that is spelt the same."""
    spelt = _spellings(asked)
    named = [*spelt[:1], *(aliases[name] for name in spelt if name in aliases)]
    return tuple(dict.fromkeys(ModelName(name) for name in (*named, *spelt, *(other for name in named for other in _spellings(name)))))


def _spellings(name: str) -> tuple[str, ...]:
    if name.endswith(_LATEST):
        return name, name.removesuffix(_LATEST)
    return (name,) if ":" in name else (name, name + _LATEST)


def _answers(workers: Iterable[DirectoryEntry], model: ModelName) -> bool:
    return any(offer.name == model and offer.ready and not offer.only_embeds for worker in workers for offer in worker.announcement.models)


def _serves(worker: DirectoryEntry, model: ModelName) -> bool:
    return any(offer.name == model and offer.ready for offer in worker.announcement.models)


def _has(worker: DirectoryEntry, model: ModelName) -> bool:
    """Ready or not."""
    return any(offer.name == model for offer in worker.announcement.models)


def _nobody(workers: Sequence[DirectoryEntry]) -> errors.NotReachable:
    why = f": {_whys(workers)}" if workers else ""
    return errors.NotReachable(f"no worker serves a model now{why}", hint=_NO_WORKER_HINT)


def _whys(workers: Sequence[DirectoryEntry]) -> str:
    """At most three reasons; a caller needs to see one, an operator has `aicli nodes`."""
    return ", ".join(f"{worker.node[:8]}… {worker.why_not or 'has no model ready'}" for worker in workers[:3])
