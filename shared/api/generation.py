"""What a generation is asked for and what comes back; the gateway's and the worker's messages share these."""

from shared.api.method import Body
from shared.types import FinishReason


class ChatMessage(Body, frozen=True):
    role: str
    content: str


class Sampling(Body, frozen=True):
    """The parameters of a generation. None leaves a choice to the worker, which takes the model's own default."""

    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    stop: tuple[str, ...] = ()
    seed: int | None = None


class Usage(Body, frozen=True, omit_defaults=False):
    """Exact counts of the model's own tokens."""

    prompt_tokens: int
    completion_tokens: int
    #: The part of the prompt that was already in the model's memory.
    cached_tokens: int = 0

    @property
    def total_tokens(self) -> int:
        return self.prompt_tokens + self.completion_tokens


class Generation(Body, frozen=True, omit_defaults=False):
    """How a generation ended."""

    finish_reason: FinishReason
    usage: Usage
