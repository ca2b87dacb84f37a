"""gateway and inference: embeddings, and ranking texts, which models compute alike. Vectors are streamed, because those of one request may
exceed the size of a message."""

import struct
from typing import Annotated

from msgspec import Meta

from shared.api.gateway import Auth
from shared.api.generation import NamedModel, TokenId
from shared.api.inference import PromptAccepted
from shared.api.method import PEOPLE, Body, StreamMethod
from shared.types import Credential, ModelName, RequestId, Role

#: All texts together, in UTF-8. A message is at most 1 MiB; 64 KiB are left for lengths, ids and names.
MAX_INPUT_BYTES = 1024 * 1024 - 64 * 1024
#: No model has more. A worker's larger claims are not believed.
MAX_DIMENSIONS = 16_384
Dimensions = Annotated[int, Meta(ge=1, le=MAX_DIMENSIONS)]
#: How many of the most relevant documents to return.
TopDocuments = Annotated[int, Meta(ge=1)]
#: The longest id in a message.
TOKEN_ID_BYTES = 5

Text = Annotated[str, Meta(min_length=1)]
TokenIds = Annotated[tuple[TokenId, ...], Meta(min_length=1)]
#: A text, or its token ids in the model's own vocabulary.
EmbeddingInput = Text | TokenIds
#: OpenAI's limit.
MAX_INPUTS = 2048
EmbeddingInputs = Annotated[tuple[EmbeddingInput, ...], Meta(min_length=1, max_length=MAX_INPUTS)]
OF_DOCUMENTS = Meta(min_length=1, max_length=1000)
Documents = Annotated[tuple[Text, ...], OF_DOCUMENTS]
#: As users write it: a text, a list of texts, token ids, or a list of these.
GivenInput = Text | Annotated[tuple[Text | TokenId | TokenIds, ...], Meta(min_length=1)]


def input_bytes(given: EmbeddingInput) -> int:
    """Return the size of an input in a message."""
    return len(given.encode("utf-8", "replace")) if isinstance(given, str) else TOKEN_ID_BYTES * len(given)


def separate_inputs(given: GivenInput) -> tuple[EmbeddingInput, ...]:
    """Return the inputs. Token ids that aren't in a list of their own are one. Raises ValueError for texts or lists among token ids, and
    for too many inputs."""
    inputs = (given,) if isinstance(given, str) else given
    kinds = set(map(type, inputs))
    if int in kinds and len(kinds) > 1:
        raise ValueError("must not mix token ids with texts or lists")
    if int not in kinds and len(inputs) > MAX_INPUTS:
        raise ValueError(f"must have at most {MAX_INPUTS} entries")
    return (inputs,) if int in kinds else inputs  # type: ignore[return-value]  # mypy can't narrow by the set


def decode_vector(vector: bytes) -> tuple[float, ...]:
    """Return the numbers of one of ``Vectors``."""
    return struct.unpack(f"<{len(vector) // 4}f", vector)


class Embed(Body, frozen=True):
    """Contains no user and no key: a worker never learns whose texts they are."""

    model: ModelName
    inputs: EmbeddingInputs
    request_id: RequestId
    #: Cuts each vector to this length and normalizes it again; None for the model's own.
    dimensions: Dimensions | None = None
    #: Only for ``rank``: each vector is one number, which says from 0 to 1 how relevant the text is to this query.
    query: Text | None = None
    #: See ``ProcessPrompt``.
    batch: bool = False


class Vectors(Body, frozen=True):
    """The next vectors, in the order of the inputs, as normalized little-endian 32-bit floats."""

    vectors: tuple[bytes, ...] = ()
    #: Before the first vector: what the request waits for, for users ("loading smollm2: 40 %").
    waiting: str = ""


def read_scores(vectors: Vectors) -> list[float]:
    """Return the scores of texts, which are vectors of one number."""
    return [number for vector in vectors.vectors for number in decode_vector(vector)]


class Embedded(Body, frozen=True, omit_defaults=False):
    dimensions: int
    prompt_tokens: int


class EmbeddingRequest(Body, frozen=True):
    inputs: EmbeddingInputs
    #: None: the default model.
    model: NamedModel | None = None
    dimensions: Dimensions | None = None
    #: Keep the texts from providers, even if policies allow them.
    forbid_external: bool = False
    #: See ``InferenceRequest``.
    flex: bool | None = None


class RankingRequest(Body, frozen=True):
    query: Text
    documents: Documents
    #: None: the default model.
    model: NamedModel | None = None
    #: Return only the most relevant ones; None returns all.
    top_n: TopDocuments | None = None
    #: Keep the texts from providers, even if policies allow them.
    forbid_external: bool = False


class RequestEmbeddings(Body, frozen=True):
    request: EmbeddingRequest
    #: Optional; the call's own credential is the default.
    auth: Auth = Auth()
    #: Chosen by the caller. Repeating the same request with the same key runs and bills it once.
    idempotency_key: str | None = None

    def own_credential(self) -> Credential | None:
        return self.auth.api_key


class EmbeddingResult(Body, frozen=True, omit_defaults=False):
    request_id: RequestId
    #: The model that answered, with aliases resolved.
    model: ModelName
    dimensions: int
    prompt_tokens: int
    response_time_ms: int
    #: See ``InferenceResult``.
    flex: bool = False


class RequestRanking(Body, frozen=True):
    request: RankingRequest
    #: Optional; the call's own credential is the default.
    auth: Auth = Auth()

    def own_credential(self) -> Credential | None:
        return self.auth.api_key


class RankingNotice(Body, frozen=True):
    """What the request waits for, for users ("loading reranker: 40 %")."""

    waiting: str


class RankedDocument(Body, frozen=True, omit_defaults=False):
    #: In the request, from 0.
    index: int
    #: From 0 to 1.
    relevance_score: float


class Ranking(Body, frozen=True, omit_defaults=False):
    request_id: RequestId
    #: The model that answered, with aliases resolved.
    model: ModelName
    #: The most relevant first.
    results: tuple[RankedDocument, ...]
    prompt_tokens: int
    response_time_ms: int


embed = StreamMethod("inference.embed", Embed, item=Vectors, end=Embedded, callers={Role.GATEWAY}, accepted=PromptAccepted)
rank = StreamMethod("inference.rerank", Embed, item=Vectors, end=Embedded, callers={Role.GATEWAY}, accepted=PromptAccepted)
request_embeddings = StreamMethod("gateway.embed", RequestEmbeddings, item=Vectors, end=EmbeddingResult, callers=PEOPLE)
request_ranking = StreamMethod("gateway.rerank", RequestRanking, item=RankingNotice, end=Ranking, callers=PEOPLE)
