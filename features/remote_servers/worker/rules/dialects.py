"""The table of servers with OpenAI's API: the parameters that each kind knows, and how to recognize and watch it.  Pure.

docs/howto/other-backends.md names the versions that the table was written from.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import msgspec

from features.remote_servers.worker.rules import model_details
from features.remote_servers.worker.rules.event_stream import BadStream
from features.remote_servers.worker.rules.model_details import DetailsPage, ModelPage
from features.remote_servers.worker.upstreams import Dialect


@dataclass(frozen=True, slots=True)
class ServerFields:
    """The parameters of one kind of server."""

    #: Field of Sampling -> the server's name for it. Others are not supported.
    fields: Mapping[str, str]
    max_tokens: str = "max_tokens"
    #: Field -> conversion of its value; None leaves it out.
    values: Mapping[str, Callable[[object], object]] = field(default_factory=dict)
    #: The field for a GBNF grammar; empty if there is none.
    grammar: str = ""
    #: The type and the field of `response_format` for a JSON schema; None for OpenAI's.
    schema_form: tuple[str, str] | None = None
    #: The field of an earlier answer's thoughts; empty if the server refuses or ignores them.
    reasoning: str = ""
    #: What it doesn't know or doesn't obey of the fields that `openai_chat.check` names.
    ignored: tuple[str, ...] = ()
    #: Every model shows messages of the system where they are, also behind the first one.
    late_system: bool = False
    #: The field for a salt; only prompts with the same one share cached computation.
    salt: str = ""


@dataclass(frozen=True, slots=True)
class ServerLoad:
    """What a server says that it does, for all of its clients."""

    running: int
    waiting: int = 0
    #: 0 if the page doesn't say.
    slots: int = 0


@dataclass(frozen=True, slots=True)
class LoadPage:
    path: str
    #: Raises BadStream or one of `event_stream.UNREADABLE`.
    read: Callable[[bytes], ServerLoad]


@dataclass(frozen=True, slots=True, kw_only=True)
class DialectRow:
    """One kind of server. Its paths are beside the API's version: `/health`, not `/v1/health`."""

    parameters: ServerFields
    #: Empty if only the list of models tells whether it answers.
    health_path: str = ""
    #: What only this kind answers; empty if its owner must name the dialect.
    identity_path: str = ""
    #: The field of that page that no other kind has there; its number of slots, if it says that.
    identity_field: str = ""
    #: How its `Server` header begins, if the page alone doesn't tell.
    program: str = ""
    #: The `owned_by` of its models, if that is always the same.
    owner: str = ""
    #: Where it says how busy it is; the first page that it has counts.
    load_pages: tuple[LoadPage, ...] = ()
    #: Where it says which of its models it forwards to a provider, if it forwards any.
    forwards_path: str = ""
    #: What it says of its models beyond their list.
    details_page: DetailsPage | None = None
    model_page: ModelPage | None = None
    #: For a server that doesn't say how many requests it runs at once.
    usual_slots: int = 0

    def read_identity(self, page: bytes, program: str = "") -> int | None:
        """Return the slots in the page at ``identity_path``, 0 if it has none, None for another kind. ``program`` is the `Server` header.
        Raises one of `event_stream.UNREADABLE`."""
        fields = msgspec.json.decode(page, type=dict[str, object])
        if self.identity_field not in fields or not program.startswith(self.program):
            return None
        slots = fields[self.identity_field]
        return slots if isinstance(slots, int) and slots > 0 else 0


class _SglangLoad(msgspec.Struct, frozen=True):
    #: All requests of one engine, the waiting ones included.
    num_reqs: int
    num_waiting_reqs: int


class _LlamaSlot(msgspec.Struct, frozen=True):
    is_processing: bool


def same(*names: str) -> dict[str, str]:
    return {name: name for name in names}


def whole(value: object) -> int:
    assert isinstance(value, int)
    return value


def gauges(running: str, waiting: str) -> Callable[[bytes], ServerLoad]:
    """Read two gauges of a page in Prometheus's text format, each summed over its labels."""
    patterns = [re.compile(rb"^%s(?:\{.*\})?[ \t]+(\S+)" % name.encode(), re.MULTILINE) for name in (running, waiting)]

    def read(page: bytes) -> ServerLoad:
        found = [[float(value) for value in pattern.findall(page)] for pattern in patterns]
        if not found[0] or not all(0 <= value < MAX_REQUESTS for values in found for value in values):
            raise BadStream(f"a page without a usable {running}")
        return ServerLoad(*(int(sum(values)) for values in found))

    return read


def _read_sglang_load(page: bytes) -> ServerLoad:
    engines = msgspec.json.decode(page, type=tuple[_SglangLoad, ...])
    return ServerLoad(sum(one.num_reqs - one.num_waiting_reqs for one in engines), sum(one.num_waiting_reqs for one in engines))


def _read_slots(page: bytes) -> ServerLoad:
    slots = msgspec.json.decode(page, type=tuple[_LlamaSlot, ...])
    return ServerLoad(sum(slot.is_processing for slot in slots), slots=len(slots))


#: More is a mistake of the server.
MAX_REQUESTS = 1_000_000

_COMMON = same("temperature", "top_p", "seed", "frequency_penalty")
_OPENAI = _COMMON | same("presence_penalty", "logit_bias", "n", "reasoning_effort")
_LOCAL = _OPENAI | same("top_k", "min_p", "ignore_eos", "chat_template_kwargs")
_REPETITION = _LOCAL | {"repeat_penalty": "repetition_penalty"}
# Before vLLM 0.9, only -1 meant "all tokens"; SGLang still refuses 0.
_VLLM = ServerFields(_REPETITION, values={"top_k": lambda value: value or -1}, reasoning="reasoning", salt="cache_salt")

DIALECTS: Mapping[Dialect, DialectRow] = {
    # OpenAI's reasoning models refuse the older name, max_tokens; many compatible servers only know that one.
    Dialect.OPENAI: DialectRow(parameters=ServerFields(_OPENAI, max_tokens="max_completion_tokens", late_system=True)),
    Dialect.COMPATIBLE: DialectRow(parameters=ServerFields(_OPENAI)),
    Dialect.VLLM: DialectRow(
        parameters=_VLLM,
        health_path="/health",
        identity_path="/version",
        identity_field="version",
        owner="vllm",
        load_pages=(LoadPage("/metrics", gauges("vllm:num_requests_running", "vllm:num_requests_waiting")),),
        # The default of --max-num-seqs on most GPUs.
        usual_slots=256,
    ),
    Dialect.SGLANG: DialectRow(
        parameters=replace(_VLLM, reasoning="reasoning_content", ignored=("parallel_tool_calls",)),
        # Its /health generates a token, which takes a second or more.
        health_path="/get_model_info",
        identity_path="/get_server_info",
        identity_field="max_running_requests",
        owner="sglang",
        # The metrics need --enable-metrics.
        load_pages=(
            LoadPage("/metrics", gauges("sglang:num_running_reqs", "sglang:num_queue_reqs")),
            LoadPage("/get_load", _read_sglang_load),
        ),
    ),
    Dialect.TENSORRT_LLM: DialectRow(
        parameters=replace(
            _VLLM, values={}, reasoning="reasoning_content", ignored=("tool_choice", "parallel_tool_calls"), schema_form=("json", "schema")
        ),
        # Each reader of its /metrics takes the numbers away from the others.
        health_path="/health",
        identity_path="/version",
        identity_field="version",
        owner="tensorrt_llm",
    ),
    Dialect.MLX: DialectRow(
        # It ignores unknown fields. Its log probabilities have another form.
        parameters=ServerFields(
            _COMMON
            | same("presence_penalty", "logit_bias", "top_k", "min_p", "chat_template_kwargs")
            | {"repeat_penalty": "repetition_penalty"},
            ignored=("format", "tool_choice", "parallel_tool_calls", "top_logprobs"),
        ),
        health_path="/health",
        # Many programs have such a page; this one is Python's own server.
        identity_path="/health",
        identity_field="status",
        program="BaseHTTP/",
    ),
    Dialect.LLAMA_CPP: DialectRow(
        # llama.cpp's seed has 32 bits; all ones mean a random seed.
        parameters=ServerFields(
            _LOCAL | same("repeat_penalty"),
            values={"seed": lambda value: whole(value) % 0xFFFF_FFFF},
            grammar="grammar",
            reasoning="reasoning_content",
        ),
        health_path="/health",
        identity_path="/props",
        identity_field="total_slots",
        # The metrics need --metrics, but know the queue.
        load_pages=(
            LoadPage("/metrics", gauges("llamacpp:requests_processing", "llamacpp:requests_deferred")),
            LoadPage("/slots", _read_slots),
        ),
        details_page=DetailsPage("/props", model_details.read_llama_props),
    ),
    Dialect.TGI: DialectRow(
        # TGI accepts n, logit_bias and presence_penalty but ignores them. It refuses a top_p of 1, which has no effect.
        parameters=ServerFields(
            _COMMON,
            values={"top_p": lambda value: None if value == 1 else value},
            ignored=("parallel_tool_calls",),
            schema_form=("json_object", "value"),
        ),
        health_path="/health",
        identity_path="/info",
        identity_field="max_concurrent_requests",
        load_pages=(LoadPage("/metrics", gauges("tgi_batch_current_size", "tgi_queue_size")),),
    ),
    Dialect.LM_STUDIO: DialectRow(
        parameters=ServerFields(
            _COMMON | same("presence_penalty", "logit_bias", "top_k", "repeat_penalty"),
            ignored=("parallel_tool_calls", "top_logprobs"),
            reasoning="reasoning_content",
        ),
        identity_path="/api/v0/models",
        identity_field="data",
        owner="organization_owner",
        details_page=DetailsPage("/api/v0/models", model_details.read_studio_models),
    ),
    Dialect.OLLAMA: DialectRow(
        # Its OpenAI API ignores n and logit_bias.
        parameters=ServerFields(
            _COMMON | same("presence_penalty", "reasoning_effort"), reasoning="reasoning", ignored=("parallel_tool_calls",)
        ),
        health_path="/api/version",
        identity_path="/api/version",
        identity_field="version",
        forwards_path="/api/tags",
        details_page=DetailsPage("/api/ps", model_details.read_ollama_loaded),
        model_page=ModelPage("/api/show", model_details.read_ollama_model),
    ),
    Dialect.AIMESH: DialectRow(
        parameters=ServerFields(_LOCAL | same("repeat_penalty"), reasoning="reasoning_content", late_system=True), health_path="/healthz"
    ),
}
