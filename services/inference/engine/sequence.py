"""One answer inside the engine: its tokens, how far they are in the model's memory, and when it ends.  Pure."""

from dataclasses import dataclass, field

from services.inference.engine import output_text
from services.inference.engine.hashed_tokens import HashedTokens
from services.inference.engine.sampling import DEFAULT_MAX_TOKENS, Parameters
from services.inference.tool_calls.tool_call_parser import ToolCallParser
from shared import errors
from shared.api.generation import ToolCall
from shared.api.inference import TokenLogprob
from shared.types import FinishReason

#: A prompt may be delayed by shorter ones that come later, by this share of the tokens that it has to read.
OVERTAKEN = 0.2


@dataclass(frozen=True, slots=True)
class DrawnToken:
    """A sequence's next token, as the model gave it."""

    token: int
    #: None where it was not asked for.
    logprob: TokenLogprob | None = None


@dataclass(frozen=True, slots=True)
class TakenToken:
    """What became of one sampled token."""

    #: Empty for the model's own end token, which is no part of the answer.
    token_ids: tuple[int, ...]
    text: str
    #: None while the answer goes on.
    finish: FinishReason | None = None
    #: Calls of tools that are complete now.
    calls: tuple[ToolCall, ...] = ()


@dataclass(slots=True, eq=False)
class Sequence:
    id: int
    #: Which of the answers to one prompt.
    answer: int
    #: The prompt, then the answer.
    hashed: HashedTokens
    prompt_tokens: int
    #: The most tokens of an answer, those that another worker delivered included.
    limit: int
    parameters: Parameters
    output: output_text.Output
    salt: str = ""
    #: So many tokens were there when it got its slot, and may be computed many at a time.
    bulk: int = 0
    #: How many of the tokens are in the model's memory.
    fed: int = 0
    #: How many of the prompt's tokens were there already.
    cached: int = 0
    #: How many of the tokens were in the slot when it got it.
    kept: int = 0
    #: How many tokens of later ones have been read before its own.
    overtaken: int = 0
    tokens: list[int] = field(init=False)

    def __post_init__(self) -> None:
        self.tokens = self.hashed.tokens

    @property
    def reading(self) -> bool:
        """It reads what was there before, many tokens at a time."""
        return self.fed < self.bulk

    @property
    def spare(self) -> int:
        """So many more tokens of later ones may be read before its own. Half of what it may lose is there at once, the rest grows while it
        reads: a crowd of short prompts at the beginning leaves something for those that come later."""
        return int(OVERTAKEN * (self.bulk + self.fed - 2 * self.kept) / 2) - self.overtaken

    def replay(self, token: int, piece: bytes | None) -> None:
        """A token that another worker delivered: its text is known, but what it holds back is needed.

        Raises BadRequest if the answer was over with it.
        """
        self.tokens.append(token)
        if piece is None or self.output.push(piece).stopped or len(self.tokens) - self.prompt_tokens >= self.limit:
            raise errors.BadRequest("delivered: the answer is over with these tokens", hint="nothing is left to generate")

    def take(self, token: int, piece: bytes | None) -> TakenToken:
        """The model's next token, with its bytes, or with None when it is an end token."""
        if piece is None:
            rest = self.output.finish()
            return TakenToken((), rest.text, FinishReason.STOP, rest.calls)
        self.tokens.append(token)
        shown = self.output.push(piece)
        if shown.stopped:
            return TakenToken((token,), shown.text, FinishReason.STOP, shown.calls)
        if len(self.tokens) - self.prompt_tokens >= self.limit:
            rest = self.output.finish()
            return TakenToken((token,), shown.text + rest.text, FinishReason.LENGTH, shown.calls + rest.calls)
        return TakenToken((token,), shown.text, calls=shown.calls)

    def begin(self, kept: int) -> None:
        """It has a slot that holds its first ``kept`` tokens."""
        self.fed = self.kept = kept
        self.overtaken = 0
        self.bulk = len(self.tokens)
        self.cached = max(self.cached, min(kept, self.prompt_tokens))


def start(
    identity: int,
    answer: int,
    prompt: HashedTokens,
    parameters: Parameters,
    *,
    context_tokens: int,
    salt: str = "",
    calls: ToolCallParser | None = None,
) -> Sequence:
    """A sequence that fits the context; raises BadRequest when not even one token fits behind the prompt."""
    room = check_fits(len(prompt.tokens), context_tokens)
    limit = min(parameters.max_tokens or DEFAULT_MAX_TOKENS, room)
    shown = output_text.Output(output_text.StopSequences(parameters.stop), calls)
    return Sequence(identity, answer, prompt.copy(), len(prompt.tokens), limit, parameters, shown, salt)


def check_fits(prompt_tokens: int, context_tokens: int) -> int:
    """How many tokens of the context a prompt leaves for the answer. Raises BadRequest when not even one is left."""
    room = context_tokens - prompt_tokens
    if not prompt_tokens:
        raise errors.BadRequest("the prompt is empty")
    if room < 1:
        raise errors.BadRequest(
            f"the prompt has {prompt_tokens} tokens; with an answer of at least one token the model's context holds {context_tokens}",
            hint=f"shorten the prompt to {context_tokens - 1} tokens, or raise ENGINE_CONTEXT_TOKENS on the worker",
        )
    return room
