"""The `ollama` backend: serves the models of an Ollama server (OLLAMA_URL) through its own API, which streams JSON lines.

Ollama ignores unknown parameters, so unsupported ones are refused here.
"""

import base64
import re
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from functools import partial

import msgspec

from features.remote_servers.worker import remote_server, upstreams
from features.remote_servers.worker.remote_backend import RemoteBackend
from features.remote_servers.worker.remote_models import ModelListing, RemoteModels
from features.remote_servers.worker.remote_server import ServerApi
from features.remote_servers.worker.rules import model_details, openai_chat, text_answers
from features.remote_servers.worker.rules.dialects import ServerFields, same, whole
from features.remote_servers.worker.rules.event_stream import Lines, convert_or
from features.remote_servers.worker.rules.forwarding import ForwardedTag
from features.remote_servers.worker.rules.openai_answer import AnswerAssembly, AnswerChoice, AnswerDelta, AnswerStep
from features.remote_servers.worker.rules.openai_chat import JsonObject, decoded, plain, refused, tool
from features.remote_servers.worker.rules.server_errors import RefusalSource
from features.remote_servers.worker.rules.token_counts import ReportedUsage
from features.remote_servers.worker.upstreams import Dialect, Upstream
from services.inference import jobs
from services.inference.backend_interface import Watcher
from services.inference.jobs import GenerationJob
from shared import errors
from shared.api.generation import ChatMessage, FormatKind, OutputFormat, ReasoningEffort, Sampling, ToolChoice
from shared.types import Ability, ModelName

NAME = "ollama"
SERVER = "Ollama"
URL_QUESTION = "is it Ollama's, without a path?"

_OPTIONS = ServerFields(
    same("temperature", "top_p", "top_k", "min_p", "repeat_penalty", "frequency_penalty", "presence_penalty", "seed"),
    # Ollama's engine has a signed 32-bit seed.
    values={"seed": lambda value: whole(value) & 0x7FFF_FFFF},
)
_LACKS = "has no such option"
#: Ollama has three levels.
_THINK: Mapping[ReasoningEffort, bool | str] = {
    ReasoningEffort.NONE: False,
    ReasoningEffort.MINIMAL: "low",
    ReasoningEffort.XHIGH: "high",
}

_NUMBER = re.compile(r"-?[0-9]{1,9}\Z")
_DURATION = re.compile(r"-?([0-9]{1,9}(\.[0-9]{1,9})?(ms|s|m|h)){1,3}\Z")

_SHA256 = re.compile(r"(?:sha256:)?([0-9a-f]{64})\Z")
_NO_WORDS: tuple[str, ...] = ()


class _Tag(ForwardedTag, frozen=True):
    #: SHA-256 of the model's manifest, which has the digests of its weights, template and parameters.
    digest: str = ""
    details: object = None
    #: Only newer versions send it.
    capabilities: object = None
    size: object = None


class _OllamaModelDetails(msgspec.Struct, frozen=True):
    family: str = ""
    families: tuple[str, ...] | None = None


class _Tags(msgspec.Struct, frozen=True):
    models: tuple[_Tag, ...]


@asynccontextmanager
async def opened(url: str, slots: int, queue: int, watcher: Watcher, *, keep_alive: str | None = None) -> AsyncIterator[RemoteBackend]:
    """``slots`` and ``queue`` are per model. Raises BadSettings."""
    upstreams.check("OLLAMA_URL", url)
    upstream = Upstream(name=NAME, url=url, dialect=Dialect.OLLAMA, key_setting="OLLAMA_URL")
    api = api_of(upstream, None if keep_alive is None else parse_keep_alive(keep_alive))
    models = RemoteModels(NAME, upstream, slots, queue, watcher)
    async with remote_server.connected(api, RefusalSource(SERVER, "OLLAMA_URL", upstream, URL_QUESTION), models) as server:
        yield RemoteBackend(NAME, [server])


def api_of(upstream: Upstream, keep: int | str | None = None) -> ServerApi:
    """``keep`` is Ollama's `keep_alive`; None for its default."""
    return ServerApi(
        models_path="api/tags",
        read_models=partial(_read_models, upstream),
        chat_path="api/chat",
        chat_request=lambda _, model, job, most: body(model, job, most, keep=keep),
        chat_assembly=OllamaAssembly,
        embedding=partial(text_answers.ollama_embedding, keep=keep),
    )


def _read_models(upstream: Upstream, content: bytes) -> tuple[ModelListing, ...]:
    listed = (_listed(tag, upstream) for tag in msgspec.json.decode(content, type=_Tags).models)
    return tuple(one for one in listed if not upstream.only_models or {one.name, one.own_name} & set(upstream.only_models))


def _listed(tag: _Tag, upstream: Upstream) -> ModelListing:
    digest = _SHA256.match(tag.digest)
    details = convert_or(_OllamaModelDetails(), tag.details)
    # Models of BERT's family can't generate text; the list doesn't tell for others.
    only_embeds = details.family.endswith("bert")
    words = (*convert_or(_NO_WORDS, tag.capabilities), *(details.families or ()), details.family)
    return ModelListing(
        upstream.alias_of(tag.name) or ModelName(tag.name.removesuffix(":latest")),
        tag.name,
        "" if digest is None else digest[1],
        context_tokens=upstream.context or 0,
        only_embeds=only_embeds,
        abilities=(Ability.EMBEDDINGS,) if only_embeds else upstream.abilities(model_details.in_ollamas_words(words)),
        provider=tag.provider,
        size_bytes=tag.size if isinstance(tag.size, int) else 0,
    )


class _OllamaLine(msgspec.Struct, frozen=True):
    """One line of the response; the last one is ``done`` and has the counts."""

    message: AnswerDelta = AnswerDelta()
    done: bool = False
    done_reason: str = "stop"
    prompt_eval_count: object = None
    eval_count: object = None
    error: object = None


_line = msgspec.json.Decoder(_OllamaLine)


def parse_keep_alive(text: str) -> int | str:
    """Parse OLLAMA_KEEP_ALIVE: a number of seconds, or a duration such as 10m. Raises BadSettings."""
    if _NUMBER.match(text):
        # Ollama refuses a string without a unit.
        return int(text)
    if _DURATION.match(text):
        return text
    raise errors.BadSettings(
        f"OLLAMA_KEEP_ALIVE: {text[:40]!r} is not a duration", hint="write 10m, 1h30m, 0 to unload at once, or -1 for always"
    )


def body(model: str, job: GenerationJob, max_tokens: int | None, *, keep: int | str | None) -> JsonObject:
    """Raises BadRequest, which names the field that Ollama doesn't support."""
    asked = job.requested
    openai_chat.check(SERVER, _LACKS, ("raw", "top_logprobs", "tool_choice", "parallel_tool_calls"), asked)
    if asked.tools and asked.format is not None:
        raise refused(SERVER, "would write every answer in the format, and never call a tool", "format")
    request: JsonObject = {
        "model": model,
        "messages": _messages(jobs.with_instructions_of_user(job.messages)),
        "stream": True,
        # By default Ollama silently drops the beginning of a prompt that is too long, at once or later.
        "truncate": False,
        "shift": False,
        "options": _options(asked, max_tokens),
        **_format(asked.format),
    }
    if asked.tools and asked.tool_choice is not ToolChoice.NONE:
        request["tools"] = [tool(position, offered) for position, offered in enumerate(asked.tools)]
    if asked.reasoning_effort is not None:
        request["think"] = _THINK.get(asked.reasoning_effort, str(asked.reasoning_effort))
    if keep is not None:
        request["keep_alive"] = keep
    return request


class OllamaAssembly(AnswerAssembly):
    """Assembles one answer from the lines of a response; the last line has the usage too."""

    media_type, splitter = "application/x-ndjson", Lines
    #: The calls so far.
    _calls = 0

    def push(self, data: bytes) -> AnswerStep:
        """Raises BadStream or one of `event_stream.UNREADABLE`."""
        if not data or self.finished:
            return AnswerStep()
        line = _line.decode(data)
        if line.error is not None:
            return AnswerStep(complaint=data)
        if line.done:
            self.usage = ReportedUsage(line.prompt_eval_count, line.eval_count)
        # Its calls are whole, and have no numbers.
        calls = tuple(msgspec.structs.replace(call, index=self._calls + number) for number, call in enumerate(line.message.calls))
        self._calls += len(calls)
        delta = msgspec.structs.replace(line.message, tool_calls=calls)
        return self.choose(AnswerChoice(delta=delta, finish_reason=line.done_reason if line.done else None))


def _options(asked: Sampling, max_tokens: int | None) -> JsonObject:
    # The effort is no option, but `think`.
    options = plain(SERVER, _LACKS, _OPTIONS, msgspec.structs.replace(asked, reasoning_effort=None))
    if max_tokens is not None:
        options["num_predict"] = max_tokens
    if asked.stop:
        options["stop"] = list(asked.stop)
    return options


def _format(asked: OutputFormat | None) -> JsonObject:
    if asked is None:
        return {}
    if not asked.is_json:
        raise refused(SERVER, "only supports JSON formats", "format")
    return {"format": "json" if asked.kind is FormatKind.JSON else decoded("format.text", asked.text)}


def _messages(messages: tuple[ChatMessage, ...]) -> list[JsonObject]:
    """Convert messages: Ollama refers to a tool by its name, our API by the id of the call."""
    names = {call.id: call.name for message in messages for call in message.tool_calls}
    return [_message(message, names) for message in messages]


def _message(message: ChatMessage, names: Mapping[str, str]) -> JsonObject:
    written: JsonObject = {"role": message.role, "content": message.content}
    if message.images:
        written["images"] = [base64.b64encode(image.data).decode() for image in message.images]
    if message.reasoning:
        written["thinking"] = message.reasoning
    if message.tool_calls:
        written["tool_calls"] = [
            {"id": call.id, "function": {"name": call.name, "arguments": decoded("messages: the arguments of a tool call", call.arguments)}}
            for call in message.tool_calls
        ]
    if message.tool_call_id is not None:
        written |= {"tool_call_id": message.tool_call_id, "tool_name": names.get(message.tool_call_id, "")}
    return written
