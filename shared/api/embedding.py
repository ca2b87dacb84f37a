"""embed: texts become vectors that lie near each other where the texts mean the same. For the worker and for the gateway.

The vectors come as a stream, because those of one request together may be larger than a message.
"""

from shared.api.gateway import PEOPLE, Auth
from shared.api.inference import PromptAccepted
from shared.api.method import Body, StreamMethod
from shared.types import Credential, ModelName, RequestId, Role

#: In one request; the texts of a document that is cut into pages.
MAX_INPUTS = 256
#: All texts together, in UTF-8. A message on the mesh is at most 1 MiB; 64 KiB of it are left for lengths, ids and names.
MAX_INPUT_BYTES = 1024 * 1024 - 64 * 1024
#: More than any model gives; what a worker claims beyond is not believed.
MAX_DIMENSIONS = 16_384


class Embed(Body, frozen=True):
    """Carries no user and no key: a worker never learns whose texts they are."""

    model: ModelName
    inputs: tuple[str, ...]
    request_id: RequestId
    #: Of each vector, which is cut to so many and made one long again; None for all that the model gives.
    dimensions: int | None = None


class Vectors(Body, frozen=True):
    """The next ones, in the order of the inputs; each is one long and of 32-bit floats, lowest byte first."""

    vectors: tuple[bytes, ...] = ()
    #: Before the first: what the request waits for, for people ("loading smollm2: 40 %").
    waiting: str = ""


class Embedded(Body, frozen=True, omit_defaults=False):
    """All of them were sent."""

    dimensions: int
    prompt_tokens: int


class EmbeddingRequest(Body, frozen=True):
    inputs: tuple[str, ...]
    #: None means the default model.
    model: ModelName | None = None
    dimensions: int | None = None


class RequestEmbeddings(Body, frozen=True):
    request: EmbeddingRequest
    #: Without it the credential of the call itself counts.
    auth: Auth = Auth()
    #: Chosen by the caller: the same request under the same key again is answered once and paid once.
    idempotency_key: str | None = None

    def own_credential(self) -> Credential | None:
        return self.auth.api_key


class EmbeddingResult(Body, frozen=True, omit_defaults=False):
    request_id: RequestId
    #: The model that answered, after aliases.
    model: ModelName
    dimensions: int
    prompt_tokens: int
    response_time_ms: int


embed = StreamMethod("inference.embed", Embed, item=Vectors, end=Embedded, callers={Role.GATEWAY}, accepted=PromptAccepted)
request_embeddings = StreamMethod("gateway.embed", RequestEmbeddings, item=Vectors, end=EmbeddingResult, callers=PEOPLE)
