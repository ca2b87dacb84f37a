"""Gets token ids from servers that have them, so that counts are exact and an answer can continue on another server.

`RemoteServer` uses nothing here for a model before a probe proved it.
"""

from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Protocol, TypeVar

import msgspec

from features.remote_servers.worker.rules.openai_answer import AnswerAssembly, AnswerChoice, AnswerStep, WrongIds
from features.remote_servers.worker.rules.openai_chat import JsonObject
from features.remote_servers.worker.rules.token_counts import ReportedUsage
from features.remote_servers.worker.upstreams import Dialect
from services.inference.chat.stop_sequences import beginning_at_end
from services.inference.jobs import GenerationJob
from shared.telemetry import logs

log = logs.get()

TokenIds = tuple[int, ...]
T = TypeVar("T")

#: After this many answers with wrong ids or counts, a server's ids aren't used; after this many failed probes, a model's aren't.
STRIKES = 3
#: Tokens at the end of an answer that llama-server counts without showing them: the beginning of a character.
UNSHOWN_TOKENS = 3


class Ask(Protocol):
    """Posts to a path beside the API. Raises an AimeshError."""

    async def __call__(self, path: str, body: JsonObject, kind: type[T]) -> T: ...


class _Tokens(msgspec.Struct, frozen=True):
    tokens: TokenIds


class _Piece(msgspec.Struct, frozen=True):
    id: int
    #: Bytes, if they are not UTF-8.
    piece: str | tuple[Annotated[int, msgspec.Meta(ge=0, le=255)], ...]

    @property
    def bytes(self) -> bytes:
        return self.piece.encode() if isinstance(self.piece, str) else bytes(self.piece)


class _Pieces(msgspec.Struct, frozen=True):
    tokens: tuple[_Piece, ...]


class _Rendered(msgspec.Struct, frozen=True):
    prompt: str = ""
    #: llama-server's name of a text of tokens.
    content: str = ""


class _Timings(msgspec.Struct, frozen=True):
    cache_n: int = 0


class _Completion(msgspec.Struct, frozen=True):
    """An event of llama-server's /completion."""

    content: str = ""
    tokens: TokenIds = ()
    stop: bool = False
    stop_type: str = ""
    stopping_word: str = ""
    tokens_predicted: int = 0
    tokens_evaluated: int = 0
    timings: _Timings = _Timings()
    error: object = None


_completion = msgspec.json.Decoder(_Completion)


class CompletionAssembly(AnswerAssembly):
    """Assembles an answer of llama-server's /completion. Of a character with several tokens, it only has the last token's id."""

    _has_gap = False

    def push(self, data: bytes) -> AnswerStep:
        """Raises BadStream or one of `event_stream.UNREADABLE`."""
        event = _completion.decode(data)
        if event.error is not None:
            return AnswerStep(complaint=data)
        reason = ("length" if event.stop_type == "limit" else "stop") if event.stop else None
        if event.stop:
            self.usage = ReportedUsage(event.tokens_evaluated, event.tokens_predicted, {"cached_tokens": event.timings.cache_n})
        else:
            missing = event.tokens_predicted - self.counted - len(event.tokens)
            self.counted += missing
            self._has_gap = self._has_gap or missing > 0
            if missing < 0:
                raise WrongIds("fewer tokens than token ids")
        stopped_by = None if event.stop_type == "eos" else event.stopping_word or event.stop_type
        step = self.choose(AnswerChoice(0, None, reason, text=event.content, token_ids=event.tokens, stop_reason=stopped_by))
        if not self._has_gap or not event.content:
            return step
        self._has_gap = False
        return msgspec.structs.replace(step, has_gap=True)


@dataclass(frozen=True, slots=True)
class TokenApi:
    """How one kind of server works with token ids. Its paths are beside the API's version."""

    #: What a chat needs for token ids in its chunks; None if they never have them, so that answers come from ``path``.
    in_chats: JsonObject | None
    #: Continues a prompt of token ids.
    path: str
    #: Fields of a chat that ``path`` doesn't have.
    dropped: frozenset[str]
    #: What ``path`` needs for token ids.
    added: JsonObject
    #: Whether the text of a token may come later than its id if there are stop sequences.
    lags_behind_ids: bool
    assembly: type[AnswerAssembly]
    #: (ask, chat) -> the prompt's tokens; empty if unknown.
    render: Callable[[Ask, JsonObject], Awaitable[TokenIds]]

    def continuation(self, chat: JsonObject, prompt: TokenIds) -> JsonObject:
        return {name: value for name, value in chat.items() if name not in self.dropped} | {"prompt": prompt, **self.added}

    def suits(self, job: GenerationJob) -> bool:
        """Whether the answer is plain text, so that ``path`` gives the same as a chat."""
        asked = job.requested
        is_plain = (asked.n or 1) == 1 and not asked.tools and asked.format is None and asked.top_logprobs is None
        has_variables = asked.reasoning_effort is not None or bool(asked.chat_template_kwargs)
        return is_plain and not has_variables and not (asked.stop and self.lags_behind_ids)


async def tokens_of(ask: Ask, text: str) -> TokenIds:
    """Return the token ids of a part of an answer of llama-server. Raises WrongIds."""
    body: JsonObject = {"content": text, "add_special": False, "parse_special": False, "with_pieces": True}
    reply = await ask("/tokenize", body, _Pieces)
    ids: list[int] = []
    left = text.encode()
    # Some tokenizers put a space before a text.
    for token in reversed(reply.tokens):
        if not left or not left.endswith(token.bytes):
            break
        left = left.removesuffix(token.bytes)
        ids.append(token.id)
    if left:
        raise WrongIds("token ids of another text")
    return tuple(reversed(ids))


async def ends_between_characters(ask: Ask, model: object, delivered: TokenIds, stops: tuple[str, ...]) -> bool:
    """Whether no text of these tokens is held back: neither a part of a character nor the beginning of a stop sequence."""
    reply = await ask("/detokenize", {"model": model, "tokens": delivered}, _Rendered)
    text = reply.prompt or reply.content
    return not text.endswith("\ufffd") and not beginning_at_end(text, stops)


async def _by_vllm(ask: Ask, chat: JsonObject) -> TokenIds:
    if "reasoning_effort" in chat:
        # Only a chat has it.
        return ()
    names = ("model", "messages", "tools", "chat_template_kwargs")
    return (await ask("/tokenize", {name: chat[name] for name in names if name in chat} | {"add_generation_prompt": True}, _Tokens)).tokens


async def _by_llama_server(ask: Ask, chat: JsonObject) -> TokenIds:
    rendered = await ask("/apply-template", chat, _Rendered)
    return (await ask("/tokenize", {"content": rendered.prompt, "add_special": True, "parse_special": True}, _Tokens)).tokens


TOKEN_APIS: Mapping[Dialect, TokenApi] = {
    Dialect.VLLM: TokenApi(
        in_chats={"return_token_ids": True},
        path="/v1/completions",
        dropped=frozenset({"messages"}),
        added={"return_token_ids": True},
        lags_behind_ids=True,
        assembly=AnswerAssembly,
        render=_by_vllm,
    ),
    Dialect.LLAMA_CPP: TokenApi(
        in_chats=None,
        path="/completion",
        dropped=frozenset({"messages", "model", "stream_options"}),
        added={"return_tokens": True},
        lags_behind_ids=False,
        assembly=CompletionAssembly,
        render=_by_llama_server,
    ),
}


class TokenSupport:
    """What is proved about the token ids of one server."""

    def __init__(self, server: str) -> None:
        self._server = server
        self._api: TokenApi | None = None
        self._strikes = 0
        #: By the server's name of a proved model: whether its answers begin with thoughts, which only a chat tells apart.
        self.thinks: dict[str, bool] = {}
        #: Failed probes, by the server's name of the model.
        self.failures: Counter[str] = Counter()

    def reset(self, dialect: Dialect) -> None:
        """Forget everything: the server was just recognized."""
        self._api, self._strikes = TOKEN_APIS.get(dialect), 0
        self.thinks.clear()
        self.failures.clear()

    def proved(self, own_name: str) -> TokenApi | None:
        return self._api if own_name in self.thinks and self._strikes < STRIKES else None

    def unproved(self, own_name: str) -> TokenApi | None:
        """Return what must be proved for a model; None if there is nothing to prove."""
        return None if own_name in self.thinks or max(self.failures[own_name], self._strikes) >= STRIKES else self._api

    def note_thoughts(self, own_name: str) -> None:
        if own_name in self.thinks:
            self.thinks[own_name] = True

    def strike(self, reason: str) -> None:
        """Note wrong ids or counts. Some are accidents, several make the ids useless until the server is recognized again."""
        self._strikes += 1
        if self._strikes == STRIKES:
            log.warning("upstream_token_ids_off", server=self._server, reason=reason)
