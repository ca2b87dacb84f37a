"""Runs jobs on one server of another program. `ollama` and `openai` describe the APIs of their servers."""

import asyncio
import struct
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeVar

import msgspec

from features.remote_servers.worker import http_server_client, remote_models, server_watch, token_ids
from features.remote_servers.worker.details_lookup import DetailsLookup
from features.remote_servers.worker.http_server_client import Server, ServerTimedOut
from features.remote_servers.worker.remote_models import ModelListing, RemoteModels
from features.remote_servers.worker.rules import forwarding, server_errors, text_answers, token_counts
from features.remote_servers.worker.rules.event_stream import UNREADABLE, BadStream
from features.remote_servers.worker.rules.openai_answer import AnswerAssembly, WrongIds
from features.remote_servers.worker.rules.openai_chat import JsonObject
from features.remote_servers.worker.rules.remote_hosts import RemoteHosts
from features.remote_servers.worker.rules.server_errors import RefusalSource
from features.remote_servers.worker.rules.text_answers import EmbeddingAssembly, EmbeddingReply, JsonRequest
from features.remote_servers.worker.rules.token_counts import MAX_ANSWER_TOKENS, ReportedUsage
from features.remote_servers.worker.server_watch import ServerWatch
from features.remote_servers.worker.token_ids import Ask, TokenApi, TokenIds, TokenSupport
from features.remote_servers.worker.upstreams import Dialect
from services.inference.backend_interface import CollectedChunks, Sink, VectorSink
from services.inference.engine.sampling import Parameters
from services.inference.engine.sequence import check_fits
from services.inference.jobs import GenerationJob
from shared import errors
from shared.api.embedding import Embed, Embedded, EmbeddingInput, Vectors
from shared.api.generation import ChatMessage, GenerationEnd, Usage
from shared.api.inference import Chunk, Moderate, Moderated
from shared.background.tasks import keep
from shared.node import lifecycle
from shared.telemetry import logs
from shared.types import FinishReason

log = logs.get()

#: After the last answer's end, for the usage and `[DONE]`, which some servers never send.
TRAILER_SECONDS = 2.0
#: The most vectors in one message to the mesh, which allows 1 MiB.
SENT_BYTES = 256 * 1024

#: For a probe; the server may have requests before it.
PROBE_SECONDS = 30.0
#: A million token ids.
MAX_TOKENS_BYTES = 16 * 1024 * 1024
#: The time of reading a token, compared with that of generating one.
PROMPT_TOKEN = 0.1

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerApi:
    """The paths of one kind of server, what it is sent and how its responses are read. The functions are pure; those that read a
    response raise BadStream or one of `event_stream.UNREADABLE`."""

    models_path: str
    read_models: Callable[[bytes], tuple[ModelListing, ...]]
    chat_path: str
    #: (dialect, the server's name of the model, job, max_tokens or None for what fits) -> the request. Raises BadRequest.
    chat_request: Callable[[Dialect, str, GenerationJob, int | None], JsonObject]
    chat_assembly: type[AnswerAssembly]
    #: (the server's name of the model, texts) -> the request.
    embedding: Callable[[str, tuple[EmbeddingInput, ...]], JsonRequest[EmbeddingReply]]


@dataclass(frozen=True, slots=True)
class _AnswerPlan:
    """How one answer is asked for."""

    path: str
    body: bytes
    answers: AnswerAssembly
    #: Empty if unknown.
    prompt: TokenIds
    has_ids: bool

    def contradiction(self, usage: ReportedUsage, delivered: int) -> str:
        """Return what is wrong with the counts of a complete answer; empty if nothing is."""
        if usage.prompt_tokens != len(self.prompt) + delivered:
            return f"{str(usage.prompt_tokens)[:20]} prompt tokens instead of {len(self.prompt) + delivered}"
        unshown = usage.completion_tokens - self.answers.counted if isinstance(usage.completion_tokens, int) else -1
        return f"{unshown} tokens without ids" if self.has_ids and not 0 <= unshown <= token_ids.UNSHOWN_TOKENS else ""


def _continuation(api: TokenApi, chat: JsonObject, prompt: TokenIds, delivered: TokenIds) -> _AnswerPlan:
    body = msgspec.json.encode(api.continuation(chat, prompt + delivered))
    return _AnswerPlan(api.path, body, api.assembly(1, str, has_ids=True), prompt, has_ids=True)


@dataclass(frozen=True, slots=True)
class ModelServer(ABC):
    """One server, its connections and its models."""

    server: Server
    models: RemoteModels

    def continues(self, job: GenerationJob, digest: str, *, is_text: bool) -> bool:
        """Whether it can continue behind the delivered tokens of a model with this digest. ``is_text``: the answer is past its thoughts."""
        return False

    @abstractmethod
    async def generate(self, job: GenerationJob, sink: Sink, attempts: int) -> GenerationEnd: ...

    @abstractmethod
    async def embed(self, job: Embed, sink: VectorSink, attempts: int) -> Embedded: ...

    async def moderate(self, request: Moderate, attempts: int) -> Moderated:
        """Only asked of a server with models that moderate."""
        raise NotImplementedError


@dataclass(frozen=True, slots=True)
class RemoteServer(ModelServer):
    """A server with an API that others have too."""

    api: ServerApi
    watch: ServerWatch
    tokens: TokenSupport
    details: DetailsLookup

    async def list_models(self) -> tuple[ModelListing, ...]:
        listed = await self.server.get(self.api.models_path, self.api.read_models)
        if await self.watch.identify({model.owned_by for model in listed}):
            self.tokens.reset(self.watch.dialect)
        listed = await self.details.fill(self.watch.row, listed)
        return listed if self.models.is_external else await self._name_providers(listed)

    async def _name_providers(self, listed: tuple[ModelListing, ...]) -> tuple[ModelListing, ...]:
        """Note to whom the server forwards which models, unless its list says so. Raises Unavailable if it doesn't say."""
        source, path = self.server.source, self.watch.forwards_path
        if not path:
            unknown = forwarding.provider_behind(source.upstream) if self.watch.may_forward else ""
            return tuple(replace(model, provider=model.provider or unknown) for model in listed)
        if path == f"/{self.api.models_path}":
            return listed
        reply = await self.server.probe(path, server_watch.IDENTITY_SECONDS, most=server_watch.MAX_PAGE_BYTES)
        try:
            if reply.status != 200 or reply.is_cut:
                raise BadStream(reply.trouble or f"status {reply.status}")
            found = forwarding.read_tags(reply.body)
        except (BadStream, *UNREADABLE) as error:
            text = f"{source.name} does not say which models it forwards to providers: {source.cleaned(str(error))}"
            raise errors.Unavailable(text, hint=f"it should at {path}") from error
        return tuple(replace(model, provider=model.provider or found.get(model.own_name, "")) for model in listed)

    def continues(self, job: GenerationJob, digest: str, *, is_text: bool) -> bool:
        listed = self.models.listing(job.model)
        api = None if listed is None else self.tokens.proved(listed.own_name)
        if listed is None or api is None or not digest or listed.digest != digest:
            return False
        return api.suits(job) and (is_text or not self.tokens.thinks[listed.own_name])

    async def generate(self, job: GenerationJob, sink: Sink, attempts: int) -> GenerationEnd:
        max_tokens = (job.parameters.max_tokens or MAX_ANSWER_TOKENS) - len(job.delivered)
        listed = self.models.listing(job.model)
        # The server alone knows the tokens of an image.
        has_images = any(message.images for message in job.messages)
        api = None if listed is None or has_images else self.tokens.proved(listed.own_name)
        with self.models.counted(job, can_continue=api is not None and api.suits(job)) as counted:
            own_name = counted.listed.own_name
            asked = self.watch.dialect, own_name, job, job.asked_tokens
            # 12 MiB of images take 40 ms.
            chat = await asyncio.to_thread(self.api.chat_request, *asked) if has_images else self.api.chat_request(*asked)
            if api is None:
                plan = self._plan_chat(job, chat)
            else:
                plan = await self._plan(api, job, chat, partial(self._ask, attempts), counted.listed.context_tokens)
            if max_tokens < 1:
                return GenerationEnd(FinishReason.LENGTH, Usage(len(plan.prompt), 0))
            try:
                await self._pass_on(plan, sink, attempts)
            except errors.Unavailable as error:
                if isinstance(error.__cause__, WrongIds):
                    self.tokens.strike(str(error.__cause__))
                raise
        answers, usage = plan.answers, plan.answers.usage or ReportedUsage()
        if answers.thoughts:
            self.tokens.note_thoughts(own_name)
        reasons = answers.reasons()
        used, recounted = token_counts.settle(
            usage, job, pieces=answers.pieces, thoughts=answers.thoughts, sent_bytes=len(plan.body), max_tokens=max_tokens
        )
        if plan.prompt:
            if wrong := plan.contradiction(usage, len(job.delivered)):
                self.tokens.strike(wrong)
            used = msgspec.structs.replace(used, prompt_tokens=len(plan.prompt), cached_tokens=min(used.cached_tokens, len(plan.prompt)))
        self.models.measure(counted, used.completion_tokens + (used.prompt_tokens - used.cached_tokens) * PROMPT_TOKEN)
        if recounted:
            log.warning("usage_recounted", server=self.server.source.name, model=job.model, fields=recounted)
        stop = next((stop for stop in job.requested.stop if stop == answers.stopped_by), None)
        return GenerationEnd(reasons[0], used, reasons if len(reasons) > 1 else (), stop)

    def _plan_chat(self, job: GenerationJob, chat: JsonObject, prompt: TokenIds = (), *, has_ids: bool = False) -> _AnswerPlan:
        answers = self.api.chat_assembly(job.requested.n or 1, remote_models.draw_call_id, has_ids=has_ids)
        return _AnswerPlan(self.api.chat_path, msgspec.json.encode(chat), answers, prompt, has_ids=has_ids)

    async def _plan(self, api: TokenApi, job: GenerationJob, chat: JsonObject, ask: Ask, context_tokens: int) -> _AnswerPlan:
        """Plan an answer with token ids if the server has them for it."""
        prompt, is_plain = await api.render(ask, chat), api.suits(job)
        if prompt:
            # vLLM refuses more than fits, and its completions end after 16 tokens by default.
            room = check_fits(len(prompt), context_tokens or MAX_ANSWER_TOKENS)
            chat |= {"max_tokens": min(job.parameters.max_tokens or room, room) - len(job.delivered)}
        if job.delivered and not await token_ids.ends_between_characters(ask, chat["model"], job.delivered, job.requested.stop):
            raise errors.Unavailable(f"{self.server.source.name} cannot continue an answer in the middle of a character or a stop sequence")
        if is_plain and (job.delivered or (api.in_chats is None and not self.tokens.thinks.get(str(chat["model"]), True))):
            return _continuation(api, chat, prompt, job.delivered)
        has_ids = is_plain and api.in_chats is not None
        return self._plan_chat(job, chat | (api.in_chats or {}) if has_ids else chat, prompt, has_ids=has_ids)

    async def prove_tokens(self) -> None:
        """Find out for each model whether the server's token ids can be used. Runs until cancelled."""
        while True:
            for listed in self.models.listings():
                api = self.tokens.unproved(listed.own_name)
                if api is None or listed.only_embeds or listed.only_moderates:
                    continue
                try:
                    async with asyncio.timeout(PROBE_SECONDS):
                        await self._prove(api, listed)
                except (errors.AimeshError, WrongIds, TimeoutError):
                    self.tokens.failures[listed.own_name] += 1
            await asyncio.sleep(server_watch.LOOK_SECONDS)

    async def _prove(self, api: TokenApi, listed: ModelListing) -> None:
        """Ask for a token by chat and one by the prompt's ids. Raises an AimeshError, or WrongIds."""
        parameters = Parameters(temperature=0.0, top_p=1.0, top_k=0, seed=0)
        job = GenerationJob(listed.name, (ChatMessage("user", "Hello"),), parameters)
        chat = self.api.chat_request(self.watch.dialect, listed.own_name, job, 1)
        prompt, seen = await api.render(partial(self._ask, 1), chat), CollectedChunks()
        plan = self._plan_chat(job, chat | (api.in_chats or {}), prompt, has_ids=api.in_chats is not None)
        await self._pass_on(plan, seen, 1)
        thinks = not any(chunk.text for chunk in seen.chunks)
        again = _continuation(api, chat, prompt, ())
        await self._pass_on(again, seen, 1)
        # An older llama-server doesn't know max_tokens here, and writes more.
        if again.answers.counted != 1 or any(one.contradiction(one.answers.usage or ReportedUsage(), 0) for one in (plan, again)):
            raise WrongIds("counts of a probe that do not add up")
        self.tokens.thinks[listed.own_name] = thinks
        log.info("upstream_token_ids_proved", server=self.server.source.name, model=listed.name, thinks=thinks)

    async def _ask(self, attempts: int, path: str, body: JsonObject, kind: type[T]) -> T:
        request = JsonRequest(path, msgspec.json.encode(body), partial(msgspec.json.decode, type=kind), MAX_TOKENS_BYTES)
        return await self.server.ask(request, attempts=attempts)

    async def embed(self, job: Embed, sink: VectorSink, attempts: int) -> Embedded:
        """Get the vectors of a job batch by batch, or all its scores at once."""
        if job.query is not None:
            return await self._rank(job, job.query, sink, attempts)
        assembly = EmbeddingAssembly(job)
        with self.models.counted(job) as counted:
            for texts in assembly.batches():
                request = assembly.packing(texts, self.api.embedding(counted.listed.own_name, texts))
                vectors = await self.server.ask(request, attempts=attempts)
                # The token count is only known after the last batch.
                sink.accept(None)
                for some in _messages(vectors):
                    await sink.send(Vectors(some))
        self.models.measure(counted, len(job.inputs))
        if assembly.recounted:
            log.warning("usage_recounted", server=self.server.source.name, model=job.model, fields=("prompt_tokens",))
        return assembly.embedded

    async def _rank(self, job: Embed, query: str, sink: VectorSink, attempts: int) -> Embedded:
        if self.watch.dialect is Dialect.OLLAMA:
            raise errors.BadRequest(f"{job.model} cannot rank texts: Ollama has no API for it", hint="use another server for this model")
        with self.models.counted(job) as counted:
            request = text_answers.ranking(counted.listed.own_name, query, job.inputs)
            scores, tokens = await self.server.ask(request, attempts=attempts)
        sink.accept(tokens)
        await sink.send(Vectors(tuple(struct.pack("<f", score) for score in scores)))
        self.models.measure(counted, len(job.inputs))
        return Embedded(1, tokens)

    async def moderate(self, request: Moderate, attempts: int) -> Moderated:
        with self.models.counted(request) as counted:
            verdicts = await self.server.ask(text_answers.moderation(counted.listed.own_name, request.texts), attempts=attempts)
        # This API reports no usage.
        return Moderated(verdicts, token_counts.settle_texts(None, request.texts)[0])

    async def _pass_on(self, plan: _AnswerPlan, sink: Sink, attempts: int) -> None:
        """Pass the answers on until they are complete. Raises Unavailable, or what the server's error means."""
        answers, split = plan.answers, plan.answers.splitter().push
        async with self.server.post(plan.path, plan.body, answers.media_type, attempts=attempts) as exchange:
            sink.accept(len(plan.prompt) or None)
            try:
                while piece := await exchange.read_piece():
                    for text in split(piece):
                        step = answers.push(text)
                        if step.complaint:
                            raise server_errors.judge_event(self.server.source, step.complaint)
                        for chunk in step.chunks:
                            await sink.send(await self._fill(chunk) if step.has_gap else chunk)
                        if step.is_progress:
                            exchange.allow(TRAILER_SECONDS if answers.finished else self.server.source.upstream.idle_seconds)
                    if answers.complete:
                        await exchange.drain()
                        break
            except ServerTimedOut:
                # A complete answer is usable without its usage.
                if not answers.finished:
                    raise
            answers.reasons()

    async def _fill(self, chunk: Chunk) -> Chunk:
        return msgspec.structs.replace(chunk, token_ids=await token_ids.tokens_of(partial(self._ask, 1), chunk.text))


@asynccontextmanager
async def connected(
    api: ServerApi, source: RefusalSource, models: RemoteModels, hosts: RemoteHosts | None = None
) -> AsyncIterator[RemoteServer]:
    """Open connections to a server, watch it and keep the list of its models fresh. Raises BadSettings."""
    async with http_server_client.connected(source, hosts) as server:
        watch = ServerWatch(server, models, api.models_path)
        one = RemoteServer(server, models, api, watch, TokenSupport(source.name), DetailsLookup(server))
        async with lifecycle.background() as tasks:
            for loop in (partial(models.watch, one.list_models), watch.run, one.prove_tokens):
                tasks.create_task(keep("local server", loop))
            yield one


def _messages(vectors: list[bytes]) -> Iterator[tuple[bytes, ...]]:
    together = max(1, SENT_BYTES // len(vectors[0]))
    for start in range(0, len(vectors), together):
        yield tuple(vectors[start : start + together])
