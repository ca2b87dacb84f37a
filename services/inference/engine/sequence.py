"""One generation inside the engine: its tokens, how far they are fed, and when it ends.  Pure."""

from dataclasses import dataclass

from services.inference.engine import output
from services.inference.engine.sampling import DEFAULT_MAX_TOKENS, Parameters
from shared import errors
from shared.types import FinishReason


@dataclass(frozen=True, slots=True)
class Taken:
    """What became of one sampled token."""

    #: Empty for the model's own end token, which is no part of the answer.
    token_ids: tuple[int, ...]
    text: str
    #: None while the generation goes on.
    finish: FinishReason | None = None


@dataclass(slots=True)
class Sequence:
    id: int
    #: The prompt, then what was generated.
    tokens: list[int]
    prompt_tokens: int
    #: The most tokens to generate.
    limit: int
    parameters: Parameters
    output: output.Output
    #: How many of the tokens are in the model's memory.
    fed: int = 0

    @property
    def prefilling(self) -> bool:
        return self.fed < self.prompt_tokens

    def take(self, token: int, piece: bytes | None) -> Taken:
        """The model's next token, with its bytes, or with None when it is an end token."""
        if piece is None:
            return Taken((), self.output.finish(), FinishReason.STOP)
        self.tokens.append(token)
        shown = self.output.push(piece)
        if shown.stopped:
            return Taken((token,), shown.text, FinishReason.STOP)
        if len(self.tokens) - self.prompt_tokens >= self.limit:
            return Taken((token,), shown.text + self.output.finish(), FinishReason.LENGTH)
        return Taken((token,), shown.text)


def start(identity: int, prompt: list[int], parameters: Parameters, *, context_tokens: int) -> Sequence:
    """A sequence that fits the context; raises BadRequest when not even one token fits behind the prompt."""
    room = context_tokens - len(prompt)
    if not prompt:
        raise errors.BadRequest("the prompt is empty")
    if room < 1:
        raise errors.BadRequest(
            f"the prompt has {len(prompt)} tokens; with an answer of at least one token the model's context holds {context_tokens}",
            hint=f"shorten the prompt to {context_tokens - 1} tokens, or raise ENGINE_CONTEXT_TOKENS on the worker",
        )
    limit = min(parameters.max_tokens or DEFAULT_MAX_TOKENS, room)
    return Sequence(identity, list(prompt), len(prompt), limit, parameters, output.Output(output.Stops(parameters.stop)))
