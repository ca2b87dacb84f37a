"""Builds the requests to services of a registry, and finds text or vector in their answers, which have no common form.  Pure."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import msgspec

from services.inference.backends.remote import dialects, openai_chat
from services.inference.backends.remote.embedding_answer import EmbeddingReply, Vector
from services.inference.backends.remote.event_stream import BadStream, convert_or
from services.inference.backends.remote.openai_chat import JsonObject
from services.inference.jobs import GenerationJob
from shared.api.embedding import EmbeddingInput
from shared.types import FinishReason

#: As in the worker's own POST /infer.
_FIELDS = dialects.ServerFields(dialects.same("temperature", "top_p", "top_k", "seed"))
_LACKS = "(a service of a registry) does not support it"
#: Where services put their result; the last three are OpenAI's.
_TEXT_PLACES = ("/text", "/output", "/response", "/generated_text", "/choices/0/message/content", "/choices/0/text")
_VECTOR_PLACES = ("/embedding", "/embeddings/0", "/data/0/embedding", "/output")
#: A token has about four bytes.
_BYTES_PER_TOKEN = 4

Found = TypeVar("Found")


class _RegistryUsage(msgspec.Struct, frozen=True):
    prompt_tokens: object = None
    completion_tokens: object = None


@dataclass(frozen=True, slots=True)
class RegistryAnswer:
    text: str
    finish_reason: FinishReason
    #: As the service reports them; None if it doesn't.
    prompt_tokens: object
    completion_tokens: object

    def count(self, max_tokens: int) -> object:
        """Return the answer's tokens, estimated if the service doesn't report them."""
        if self.completion_tokens is not None:
            return self.completion_tokens
        return min(max_tokens, -(-len(self.text.encode()) // _BYTES_PER_TOKEN))


def prompt_body(model: str, job: GenerationJob) -> bytes:
    """Raises BadRequest, which names a parameter that cannot be passed on."""
    asked = job.requested
    structured = {"raw": asked.raw, "format": asked.format, "tools": asked.tools, "logprobs": asked.top_logprobs is not None}
    for name, value in structured.items():
        if value:
            raise openai_chat.refused(model, _LACKS, name)
    payload: JsonObject = {"max_tokens": job.asked_tokens, **openai_chat.plain(model, _LACKS, _FIELDS, asked)}
    if len(job.messages) == 1 and job.messages[0].role == "user":
        payload["prompt"] = job.messages[0].content
    else:
        payload["messages"] = [{"role": message.role, "content": message.content} for message in job.messages]
    if job.asked_tokens is None:
        del payload["max_tokens"]
    if asked.stop:
        payload["stop"] = list(asked.stop)
    return msgspec.json.encode({"model": model, "payload": payload})


def text_body(model: str, text: EmbeddingInput) -> bytes:
    return msgspec.json.encode({"model": model, "payload": {"input": text}})


def read_text(content: bytes, pointer: str | None) -> RegistryAnswer:
    """``pointer`` is a JSON pointer to the text; None looks at the usual places. Raises BadStream or one of `event_stream.UNREADABLE`."""
    answer = _decode(content)
    text = _first(answer, _TEXT_PLACES if pointer is None else (pointer,), lambda found: found if isinstance(found, str) else None)
    if text is None:
        raise BadStream(_nothing("text", pointer))
    usage = convert_or(_RegistryUsage(), _at(answer, "/usage"))
    said = _at(answer, "/finish_reason") or _at(answer, "/choices/0/finish_reason")
    reason = FinishReason.LENGTH if said == "length" else FinishReason.STOP
    return RegistryAnswer(text, reason, usage.prompt_tokens, usage.completion_tokens)


def read_vector(content: bytes, pointer: str | None) -> EmbeddingReply:
    """Raises BadStream or one of `event_stream.UNREADABLE`."""
    answer = _decode(content)
    vector = _first(answer, _VECTOR_PLACES if pointer is None else (pointer,), _as_vector)
    if vector is None:
        raise BadStream(_nothing("vector", pointer))
    return EmbeddingReply((vector,), convert_or(_RegistryUsage(), _at(answer, "/usage")).prompt_tokens)


def _decode(content: bytes) -> object:
    answer = msgspec.json.decode(content)
    # As Hugging Face's pipelines: a list of one answer.
    return answer[0] if isinstance(answer, list) and len(answer) == 1 and isinstance(answer[0], dict) else answer


def _first(answer: object, places: Sequence[str], accept: Callable[[object], Found | None]) -> Found | None:
    return next((found for place in places if (found := accept(_at(answer, place))) is not None), None)


def _as_vector(found: object) -> Vector | None:
    try:
        return msgspec.convert(found, Vector, strict=True) or None
    except msgspec.ValidationError:
        return None


def _at(value: object, pointer: str) -> object:
    """Return what a JSON pointer (RFC 6901) leads to; None if there is nothing."""
    for part in pointer.split("/")[1:]:
        key = part.replace("~1", "/").replace("~0", "~")
        if isinstance(value, dict):
            value = value.get(key)
        elif isinstance(value, list) and key.isdecimal() and int(key) < len(value):
            value = value[int(key)]
        else:
            return None
    return value


def _nothing(what: str, pointer: str | None) -> str:
    return f"no {what} at {pointer!r}" if pointer is not None else f"no {what} in its answer; set `answer` to the JSON pointer of it"
