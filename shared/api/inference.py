"""inference: a worker's models, and running a prompt on one of them."""

from enum import StrEnum
from typing import Annotated, Literal

import msgspec

from shared.api.generation import MAX_PROMPT_BYTES, GenerationEnd, Messages, Sampling, TokenId, ToolCall, ToolCallPart, Tools
from shared.api.method import Body, Method, Nothing, StreamMethod
from shared.config_documents import ModerationFormat
from shared.errors import Problem
from shared.types import FinishReason, LoadPurpose, ModelName, Moment, RequestId, Role, UserId

PullSource = Annotated[str, msgspec.Meta(min_length=1, max_length=2000)]
#: Texts of one moderation request.
MAX_TEXTS = 32
Texts = Annotated[tuple[Annotated[str, msgspec.Meta(min_length=1)], ...], msgspec.Meta(min_length=1, max_length=MAX_TEXTS)]

CategoryName = Annotated[str, msgspec.Meta(min_length=1, max_length=100)]
Score = Annotated[float, msgspec.Meta(ge=0, le=1)]
#: Per read; 64 KiB of answer.
MAX_RECEIPTS = 256


class ModelConfig(Sampling, frozen=True, kw_only=True):
    model: ModelName


class ProcessPrompt(Body, frozen=True):
    """Contains no user and no key: a worker never learns whose prompt it runs."""

    #: Plain text, or a chat for the model's own template.
    prompt: str | Messages
    model_config: ModelConfig
    request_id: RequestId
    #: Prompts with the same salt may share cached computation. There is one salt per tenant, which reveals nothing else. Empty shares
    #: nothing.
    salt: str = ""
    #: Token ids of an answer that another worker began. This worker continues after them and does not send them again.
    delivered: tuple[TokenId, ...] = ()
    #: What that worker computed them with, as it said when it accepted.
    numerics: str = ""
    #: False lets the worker send several chunks at once.
    streamed: bool = True
    #: The reader's credit means that the caller got the items. Otherwise a receipt counts nothing as credited.
    reader_paced: bool = False
    #: The caller named no max_tokens. That of ``model_config`` is only the gateway's own bound, which other servers may refuse.
    open_ended: bool = False
    #: Nobody waits for it: live requests go first, and the worker may end it with ``preempted``.
    batch: bool = False


class PromptAccepted(Body, frozen=True):
    """The prompt is valid and queued. Sent before the first chunk, so that the count is known even if the call is canceled."""

    #: Counted exactly, in the model's own tokens.
    prompt_tokens: int
    #: See ``ModelOffer``.
    numerics: str = ""


class TokenChance(Body, frozen=True):
    """A possible next token and its log probability."""

    token_id: int
    #: Its bytes, possibly only part of a character.
    piece: bytes
    logprob: float


class TokenLogprob(Body, frozen=True):
    """A generated token, and the most likely tokens in its place."""

    drawn: TokenChance
    top: tuple[TokenChance, ...] = ()


class Chunk(Body, frozen=True):
    """The text of one or more tokens; empty while a character or stop sequence is incomplete."""

    text: str
    #: The tokens of this chunk. They are billed, and another worker would need them to continue.
    token_ids: tuple[int, ...]
    #: Which answer, if the request asked for several.
    answer: int = 0
    #: One per token, if requested.
    logprobs: tuple[TokenLogprob, ...] = ()
    #: Completed calls, after the gateway has masked them.
    tool_calls: tuple[ToolCall, ...] = ()
    #: What the request waits for, for users ("loading smollm2: 40 %"). Behind the first text only if it is of a batch.
    waiting: str = ""
    #: In an answer's last chunk: a reader that has it misses nothing, even if the worker is lost.
    finish: FinishReason | None = None
    #: Thoughts of the model, which come before its answer.
    reasoning: str = ""
    #: Parts of calls, as workers send them. The text that the model wrote for them is not in ``text``.
    call_parts: tuple[ToolCallPart, ...] = ()


class Moderate(Body, frozen=True):
    """Contains no user and no key: a worker never learns whose texts they are."""

    model: ModelName
    texts: Texts
    request_id: RequestId
    #: How a chat model writes its verdict; None for a model that only moderates.
    format: ModerationFormat | None = None


class ModerationNotice(Body, frozen=True):
    """What the request waits for, for users ("loading guard: 40 %")."""

    waiting: str


class ModerationVerdict(Body, frozen=True, omit_defaults=False):
    flagged: bool
    #: The categories that are flagged.
    categories: Annotated[tuple[CategoryName, ...], msgspec.Meta(max_length=100)] = ()
    #: By category. A model without scores has 1 for each flagged category.
    scores: Annotated[dict[CategoryName, Score], msgspec.Meta(max_length=100)] = msgspec.field(default_factory=dict)


class Moderated(Body, frozen=True, omit_defaults=False):
    #: One for each text, in their order.
    verdicts: Annotated[tuple[ModerationVerdict, ...], msgspec.Meta(max_length=MAX_TEXTS)]
    #: Read for all texts. Of a chat model also the few that it wrote.
    prompt_tokens: int


#: Of a converted text, with what templates add, or of its token ids.
MAX_CONVERTED_BYTES = MAX_PROMPT_BYTES + 1024 * 1024
#: Of one token id, little-endian.
TOKEN_BYTES = 4


class RenderChat(Body, frozen=True, tag="render"):
    """Render a chat with the model's template, as for an answer. Contains no user and no key, like the next two."""

    model: ModelName
    messages: Messages
    tools: Tools = ()
    #: End with the beginning of the model's answer.
    add_generation_prompt: bool = True


class Tokenize(RenderChat, frozen=True, tag="tokenize"):
    """Render a chat, and convert it to token ids."""

    #: The only message is a text to tokenize, not a chat.
    raw: bool = False
    #: Begin with the model's first token, as prompts do.
    add_special_tokens: bool = True


class Detokenize(Body, frozen=True, tag="detokenize"):
    """Convert token ids, of TOKEN_BYTES each, to text."""

    model: ModelName
    token_ids: bytes


Conversion = Tokenize | Detokenize | RenderChat


class ConvertedPart(Body, frozen=True):
    """A part of the token ids, of TOKEN_BYTES each, or of the text in UTF-8. Every answer has one."""

    #: Where it begins, in bytes. At 0 the answer begins, also again, if another worker took over.
    start: int = 0
    content: bytes = b""

    #: What other answers have for notices.
    waiting = ""


class Converted(Body, frozen=True):
    #: Of the model; 0 if unknown.
    context_tokens: int = 0


class ModelState(StrEnum):
    READY = "ready"
    LOADING = "loading"
    FAILED = "failed"
    #: On disk; loaded on the first request.
    UNLOADED = "unloaded"


#: The states in which a worker accepts prompts.
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
    #: SHA-256 of the model file; empty if there is none.
    digest: str = ""
    aliases: tuple[ModelName, ...] = ()
    #: Never unloaded to make room.
    pinned: bool = False
    #: Memory that the model uses or would use; 0 if unknown.
    memory_bytes: int = 0
    #: An embedding model.
    only_embeds: bool = False
    #: The provider that gets the prompts; empty if they stay on the operator's machines.
    provider: str = ""
    #: A moderation model.
    only_moderates: bool = False
    #: Its server has asked for a pause: requests are refused until then.
    rests: bool = False
    #: Where its server is, as the file of upstreams says.
    region: str = ""
    #: What it can do besides answering text with text.
    abilities: tuple[str, ...] = ()
    #: The model whose adapter this is; they share slots.
    parent: ModelName | None = None
    #: Another server runs it.
    is_upstream: bool = False
    #: That server's name for it, if this is an alias.
    upstream_model: str = ""
    #: Loaded for agents, it would have the context that they need; False if it is loaded for them.
    can_suit_agents: bool = False
    #: See ``ModelOffer``.
    numerics: str = ""
    batch_busy: int = 0
    yields: bool = False
    #: Why nobody trusted has signed it, as ``Distrust`` says; empty if that is not needed.
    distrust: str = ""
    #: See ``ModelOffer``.
    quantization: str = ""


class ListAvailableModels(Body, frozen=True):
    pass


class AvailableModels(Body, frozen=True):
    models: tuple[ModelStatus, ...]


class GetModelStatus(Body, frozen=True):
    model_id: ModelName


class LoadModel(Body, frozen=True):
    model_id: ModelName
    #: Whether to keep the model in memory; None does not change that.
    pin: bool | None = None
    #: What to load it for, also later; it is loaded again if that changes. None does not change that.
    purpose: LoadPurpose | None = None


class UnloadModel(Body, frozen=True):
    """Unload and unpin a model. Refused as overloaded while the model has requests."""

    model_id: ModelName


class PullModel(Body, frozen=True):
    """Download a model into the worker's store. Canceling the call ends the download; the next one resumes it."""

    #: A URL, hf:, ollama: or oci://.
    source: PullSource
    #: The name to serve it under; None: named after the source.
    name: ModelName | None = None
    #: Allow HTTP without TLS.
    insecure: bool = False


class PullProgress(Body, frozen=True):
    step: str
    done_bytes: int
    #: None if unknown.
    total_bytes: int | None = None
    bytes_per_second: float = 0.0
    #: Of ``done_bytes``, since the copy began or was resumed.
    from_peers_bytes: int = 0
    #: Other workers from which it is copied.
    peers: int = 0


class PulledModel(Body, frozen=True, omit_defaults=False):
    model: ModelName
    digest: str
    size: int
    #: The worker had it already.
    unchanged: bool = False


class Assignment(msgspec.Struct, frozen=True):
    """How a worker serves a model that the mesh has put there."""

    #: None: as the worker's settings say.
    context_tokens: int | None = None
    slots: int | None = None


class EnsureModel(Body, frozen=True):
    """Get a model, unless it is here or on its way, and serve it as assigned from then on, also after a restart. Returns at once."""

    name: ModelName
    source: PullSource
    assignment: Assignment = Assignment()


class EnsuredModel(Body, frozen=True, omit_defaults=False):
    is_stored: bool
    #: Why the last attempt failed. The next order tries again.
    problem: str = ""


class RemoveModel(Body, frozen=True):
    """Remove a model that the mesh has put there, once its last request has ended. What people put there stays.

    With ``by``, a person removes any model of the worker's store; then the mesh doesn't put it there again until the owner accepts models
    again. The worker refuses all but its owner and administrators.
    """

    name: ModelName
    by: UserId | None = None
    is_administrator: bool = False


#: Of a file's beginning, which names the model's layers and context; most files have the vocabulary behind it.
MAX_HEADER_BYTES = 256 * 1024
#: Of one ``planModels``.
MAX_PLANNED = 50


class ModelFacts(Body, frozen=True, kw_only=True):
    """What decides how much memory a model needs."""

    #: Of all its files.
    file_bytes: Annotated[int, msgspec.Meta(ge=1)]
    #: The beginning of its GGUF file; empty if nobody could read it. Then the numbers below count, which may be estimates.
    header: Annotated[bytes, msgspec.Meta(max_length=MAX_HEADER_BYTES)] = b""
    layers: Annotated[int, msgspec.Meta(ge=1, le=1_000)] = 32
    #: Of a token within the model, and of its keys in one layer; 0 for a model that keeps no keys.
    width: Annotated[int, msgspec.Meta(ge=1, le=10**6)] = 4096
    key_width: Annotated[int, msgspec.Meta(ge=0, le=10**6)] = 1024
    #: 0 if unknown.
    context_tokens: Annotated[int, msgspec.Meta(ge=0, le=2**30)] = 0


class Fit(StrEnum):
    YES = "yes"
    #: Some layers would be on the processor.
    PARTLY = "partly"
    NO = "no"
    #: The worker did not say.
    UNKNOWN = "unknown"


class ModelFit(Body, frozen=True, kw_only=True, omit_defaults=False):
    fit: Fit
    #: For people: how, or why not, with the numbers.
    detail: Annotated[str, msgspec.Meta(max_length=1_000)] = ""
    #: Of a slot.
    context_tokens: int = 0
    #: Whether all of it would be on GPUs.
    on_gpu: bool = False
    #: Memory for models on this machine, on its GPUs or else all.
    free_bytes: int = 0


class PlanModels(Body, frozen=True):
    """Plan how this worker would load models that it doesn't have."""

    models: Annotated[tuple[ModelFacts, ...], msgspec.Meta(max_length=MAX_PLANNED)]


class ModelFits(Body, frozen=True):
    """In the order of the request."""

    fits: tuple[ModelFit, ...]


class Receipt(Body, frozen=True, omit_defaults=False):
    """A worker's record of one request, for when the gateway that sent it is lost. Only the last run of a request is kept."""

    request_id: RequestId
    #: 0 if it was not read.
    prompt_tokens: int
    #: Tokens of the answer that an earlier run delivered.
    delivered_before: int
    #: Tokens that it sent. A few may not have arrived.
    completion_tokens: int
    #: A finish reason, an error code, or RUNNING.
    ended: str
    #: None while it runs.
    ended_at: Moment | None = None
    #: From arrival to the end, waiting included.
    seconds: float = 0.0
    #: Sent tokens that the caller's side acknowledged with credit. If the gateway dies, only these are billed.
    credited_tokens: int = 0


RUNNING = "running"
#: The signature purpose of receipts.
RECEIPT_PURPOSE = "receipt"


class SignedReceipt(Body, frozen=True):
    #: A Receipt in MessagePack.
    text: bytes
    #: By the worker's key, for RECEIPT_PURPOSE.
    signature: bytes


class SetModelConsent(Body, frozen=True):
    """Let administrators put models on this machine, or don't. The worker refuses all but its owner; a machine without one belongs to the
    administrators."""

    by: UserId
    accepts_models: bool
    is_administrator: bool = False


class ReadReceipts(Body, frozen=True):
    request_ids: Annotated[tuple[RequestId, ...], msgspec.Meta(max_length=MAX_RECEIPTS)]


class Receipts(Body, frozen=True):
    """The receipts that the worker still has."""

    receipts: tuple[SignedReceipt, ...]


LOOKERS = {Role.GATEWAY, Role.METRICS, Role.OPERATOR}

process_prompt = StreamMethod(
    "inference.processPrompt",
    ProcessPrompt,
    item=Chunk,
    end=GenerationEnd,
    callers={Role.GATEWAY},
    accepted=PromptAccepted,
    takes_long_requests=True,
)
moderate = StreamMethod(
    "inference.moderate",
    Moderate,
    item=ModerationNotice,
    end=Moderated,
    callers={Role.GATEWAY},
    accepted=PromptAccepted,
    takes_long_requests=True,
)
tokenize = StreamMethod("inference.tokenize", Tokenize, item=ConvertedPart, end=Converted, callers={Role.GATEWAY}, takes_long_requests=True)
detokenize = StreamMethod(
    "inference.detokenize", Detokenize, item=ConvertedPart, end=Converted, callers={Role.GATEWAY}, takes_long_requests=True
)
render_chat = StreamMethod(
    "inference.renderChat", RenderChat, item=ConvertedPart, end=Converted, callers={Role.GATEWAY}, takes_long_requests=True
)
list_available_models = Method("inference.listAvailableModels", ListAvailableModels, AvailableModels, callers=LOOKERS)
get_model_status = Method("inference.getModelStatus", GetModelStatus, ModelStatus, callers=LOOKERS)
load_model = Method("inference.loadModel", LoadModel, ModelStatus, callers={Role.GATEWAY, Role.OPERATOR})
unload_model = Method("inference.unloadModel", UnloadModel, ModelStatus, callers={Role.GATEWAY, Role.OPERATOR})
pull_model = StreamMethod("inference.pullModel", PullModel, item=PullProgress, end=PulledModel, callers={Role.GATEWAY, Role.OPERATOR})
ensure_model = Method("inference.ensureModel", EnsureModel, EnsuredModel, callers={Role.GATEWAY})
remove_model = Method("inference.removeModel", RemoveModel, Nothing, callers={Role.GATEWAY})
plan_models = Method("inference.planModels", PlanModels, ModelFits, callers={Role.GATEWAY})
set_model_consent = Method("inference.setModelConsent", SetModelConsent, Nothing, callers={Role.GATEWAY})
read_receipts = Method("inference.readReceipts", ReadReceipts, Receipts, callers={Role.GATEWAY})


# --- the store of models, which `aicli models` and workers change through a program: one StoreRequest on stdin, then lines on stdout ------


class ModelSources(msgspec.Struct, frozen=True, kw_only=True):
    hub_url: str = "https://huggingface.co"
    hub_token: str | None = None
    #: Host -> the start of the URLs to use instead.
    mirrors: dict[str, str] = {}


class StoreRequest(msgspec.Struct, frozen=True, kw_only=True):
    command: Literal["pull", "add", "remove", "show", "prune"]
    folder: str
    #: A size such as 200GiB; empty for no limit.
    quota: str = ""
    #: The source for `pull`, the file for `add`, the name for `remove` and `show`; empty shows all.
    target: str = ""
    #: The name to serve it under; None: named after the file.
    name: str | None = None
    #: The source, or the file, of what makes embeddings of images; empty: the one beside the model, `none`: without it.
    projector: str = ""
    #: Allow HTTP without TLS to other machines.
    insecure: bool = False
    token_file: str | None = None
    sources: ModelSources = ModelSources()
    #: MODELS_PULL names the source; no person asked for it.
    by_settings: bool = False
    #: The mesh has put it there; no person of this machine asked for it.
    assignment: Assignment | None = None
    #: A process; the program ends with it.
    parent: int | None = None


class StoredModel(msgspec.Struct, frozen=True, kw_only=True):
    name: ModelName
    #: The SHA-256 of the file, in hex; of several parts, that of their digests.
    digest: str
    #: Of all files.
    size: int
    #: Where it came from, without a query, which may hold a secret.
    source: str
    stored_at: Moment
    #: Identifies the source with its query.
    source_key: str
    parts: int = 1
    #: The SHA-256 of each, if there are several and it is a version of the mesh.
    part_digests: tuple[str, ...] = ()
    #: The SHA-256 of its file for images; empty without one.
    projector: str = ""
    #: What MODELS_PULL called it, in all workers of the store. They serve it as long as they call it so; empty: people pulled or added it.
    pulled_as: tuple[str, ...] = ()
    #: Set if the mesh has put it there.
    assignment: Assignment | None = None


class StarterOffer(msgspec.Struct, frozen=True):
    """A model that a machine without one could pull: the best that fits, and is fast enough."""

    source: str
    file_bytes: int
    #: For models together, on this machine.
    free_bytes: int
    #: What a processor would reach; None for a GPU, which isn't measured.
    tokens_per_second: float | None = None


class StoreResult(msgspec.Struct, frozen=True, kw_only=True):
    #: The models pulled, added, removed or shown.
    models: tuple[StoredModel, ...] = ()
    #: The model was there already.
    unchanged: bool = False
    freed_bytes: int = 0
    problem: Problem | None = None


class BegunFile(msgspec.Struct, frozen=True):
    """A file whose SHA-256 the source lists, and where it grows."""

    path: str
    digest: str
    size: int


class StoreLine(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One of these; the last line has the result."""

    begun: BegunFile | None = None
    progress: PullProgress | None = None
    result: StoreResult | None = None
