"""inference: a worker's models, and a prompt run on one of them."""

from datetime import datetime
from enum import StrEnum
from typing import Annotated

import msgspec

from shared.api.generation import ChatMessage, Generation, Sampling, ToolCall
from shared.api.method import Body, Method, StreamMethod
from shared.types import FinishReason, ModelName, RequestId, Role

#: Receipts that are read at once: 64 KiB of answer.
MOST_RECEIPTS = 256


class ModelConfig(Sampling, frozen=True, kw_only=True):
    model: ModelName


class ProcessPrompt(Body, frozen=True):
    """Carries no user and no key: a worker never learns whose prompt it runs."""

    #: A plain prompt, or a chat that the model's own template turns into one.
    prompt: str | tuple[ChatMessage, ...]
    model_config: ModelConfig
    request_id: RequestId
    #: Prompts with the same salt may share what the model has computed of them: one for each tenant, and it says no more
    #: of the tenant than that. Empty shares nothing.
    salt: str = ""
    #: Token ids of an answer that another worker began; this one goes on behind them and does not send them again.
    delivered: tuple[int, ...] = ()
    #: Somebody reads along. Else the chunks may come some at a time.
    streamed: bool = True
    #: What its reader gives credit for has reached the caller. Else a receipt counts nothing as credited.
    reader_paced: bool = False


class PromptAccepted(Body, frozen=True):
    """The prompt is understood and queued; told before the first chunk, so that it is known for a cancelled call too."""

    #: The exact count of the model's own tokens.
    prompt_tokens: int


class TokenChance(Body, frozen=True):
    """A token that might be next, and the logarithm of how likely the model takes it to be."""

    token_id: int
    #: Its bytes, which may be a part of a character.
    piece: bytes
    logprob: float


class TokenLogprob(Body, frozen=True):
    """A token that was drawn, and the likeliest ones at its place."""

    drawn: TokenChance
    top: tuple[TokenChance, ...] = ()


class Chunk(Body, frozen=True):
    """The text that one or more tokens gave; text may be empty while a character or a stop sequence is incomplete."""

    text: str
    #: The token ids behind it: what is counted, and what another worker would need to go on from here.
    token_ids: tuple[int, ...]
    #: Which of the answers, where more than one was asked for.
    answer: int = 0
    #: One for each token id, where they were asked for.
    logprobs: tuple[TokenLogprob, ...] = ()
    #: Calls that are complete now; what the model wrote for them is not in ``text``.
    tool_calls: tuple[ToolCall, ...] = ()
    #: Before the first text: what the answer waits for, for people ("loading smollm2: 40 %").
    waiting: str = ""
    #: Of the last chunk of an answer, where there is one: who has it misses nothing, whatever becomes of the worker.
    finish: FinishReason | None = None


class ModelState(StrEnum):
    READY = "ready"
    LOADING = "loading"
    FAILED = "failed"
    #: On disk, and loaded when somebody asks for it: as good as ready, after a wait.
    UNLOADED = "unloaded"


#: The states in which a worker takes prompts for a model.
SERVED = (ModelState.READY, ModelState.UNLOADED)


class ModelStatus(Body, frozen=True, omit_defaults=False):
    model_id: ModelName
    state: ModelState
    #: What is wrong, or what it waits for.
    detail: str
    backend: str
    context_tokens: int
    slots: int
    running: int
    queued: int
    #: SHA-256 of the model's file; empty where the backend has none to show.
    digest: str = ""
    #: Other names that it answers to.
    aliases: tuple[ModelName, ...] = ()
    #: It stays in memory, whoever needs the room.
    pinned: bool = False
    #: What it takes, or would take; 0 where the backend does not know.
    memory_bytes: int = 0
    #: It gives vectors and no answers.
    only_embeds: bool = False


class ListAvailableModels(Body, frozen=True):
    pass


class AvailableModels(Body, frozen=True):
    models: tuple[ModelStatus, ...]


class GetModelStatus(Body, frozen=True):
    model_id: ModelName


class LoadModel(Body, frozen=True):
    model_id: ModelName
    #: Whether it shall stay in memory from now on; None leaves that as it is.
    pin: bool | None = None


class UnloadModel(Body, frozen=True):
    """Refused as overloaded while the model has requests. Ends a pin."""

    model_id: ModelName


class Receipt(Body, frozen=True, omit_defaults=False):
    """What a worker did for one request: its word, for when the gateway that asked it is gone. If it was asked twice, of the last time."""

    request_id: RequestId
    #: 0 where it was not read.
    prompt_tokens: int
    #: Of the answer, those that another worker, or this one, had delivered before.
    delivered_before: int
    #: Token ids that it sent; a few of them may have reached nobody.
    completion_tokens: int
    #: A finish reason, an error's code, or RUNNING.
    ended: str
    #: None while it runs.
    ended_at: datetime | None = None
    #: From when it came to its end, waiting included.
    seconds: float = 0.0
    #: Of the tokens that it sent, those that the caller's side gave credit for: all that is billed if the gateway died.
    credited_tokens: int = 0


#: Of a receipt: the request runs still.
RUNNING = "running"
#: What a receipt is signed for.
RECEIPT_PURPOSE = "receipt"


class SignedReceipt(Body, frozen=True):
    #: A Receipt in MessagePack.
    text: bytes
    #: Of the worker's key, for RECEIPT_PURPOSE.
    signature: bytes


class ReadReceipts(Body, frozen=True):
    request_ids: Annotated[tuple[RequestId, ...], msgspec.Meta(max_length=MOST_RECEIPTS)]


class Receipts(Body, frozen=True):
    """Of those requests that the worker remembers."""

    receipts: tuple[SignedReceipt, ...]


LOOKERS = {Role.GATEWAY, Role.METRICS, Role.OPERATOR}

process_prompt = StreamMethod(
    "inference.processPrompt", ProcessPrompt, item=Chunk, end=Generation, callers={Role.GATEWAY}, accepted=PromptAccepted
)
list_available_models = Method("inference.listAvailableModels", ListAvailableModels, AvailableModels, callers=LOOKERS)
get_model_status = Method("inference.getModelStatus", GetModelStatus, ModelStatus, callers=LOOKERS)
load_model = Method("inference.loadModel", LoadModel, ModelStatus, callers={Role.GATEWAY, Role.OPERATOR})
unload_model = Method("inference.unloadModel", UnloadModel, ModelStatus, callers={Role.GATEWAY, Role.OPERATOR})
read_receipts = Method("inference.readReceipts", ReadReceipts, Receipts, callers={Role.GATEWAY})
