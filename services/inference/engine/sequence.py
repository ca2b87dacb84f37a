"""One answer in the engine: its tokens and visible text, how many tokens are computed, and when it ends.  Pure."""

import codecs
from dataclasses import dataclass, field

from services.inference.engine.kv_slots import HashedTokens
from services.inference.engine.sampling import DEFAULT_MAX_TOKENS, Parameters
from services.inference.tool_calls.tool_call_parser import ParsedText, ToolCallParser
from shared import errors
from shared.api.generation import ToolCall
from shared.api.inference import TokenLogprob
from shared.types import FinishReason


@dataclass(frozen=True, slots=True)
class VisibleText:
    """The text that a token made visible."""

    text: str
    #: A stop sequence is complete; the text ends before it.
    stopped: bool = False
    calls: tuple[ToolCall, ...] = ()


class StopSequences:
    """Searches a text for the earliest of several stop sequences, however the text is split into pieces."""

    def __init__(self, sequences: tuple[str, ...]) -> None:
        self._sequences = sequences
        #: The end of the text that may be the start of a stop sequence; shorter than the longest of them.
        self._held = ""

    def push(self, text: str) -> VisibleText:
        """Add text; return the part that can't belong to a stop sequence."""
        self._held += text
        found = [at for at in (self._held.find(sequence) for sequence in self._sequences) if at >= 0]
        if found:
            shown = self._held[: min(found)]
            self._held = ""
            return VisibleText(shown, stopped=True)
        keep = self._longest_beginning()
        cut = len(self._held) - keep
        shown, self._held = self._held[:cut], self._held[cut:]
        return VisibleText(shown)

    def finish(self) -> str:
        """Return the text that was held back, at the end."""
        held, self._held = self._held, ""
        return held

    def _longest_beginning(self) -> int:
        """Return the length of the longest suffix of the held text that is a prefix of a stop sequence."""
        longest = max((len(sequence) for sequence in self._sequences), default=0)
        for length in range(min(longest - 1, len(self._held)), 0, -1):
            if any(sequence.startswith(self._held[-length:]) for sequence in self._sequences):
                return length
        return 0


@dataclass(slots=True)
class AnswerText:
    """The visible text of one generation."""

    stops: StopSequences
    calls: ToolCallParser | None = None
    #: Invalid bytes become U+FFFD; incomplete characters are held back.
    _characters: codecs.IncrementalDecoder = field(default_factory=lambda: codecs.getincrementaldecoder("utf-8")("replace"))

    def push(self, piece: bytes) -> VisibleText:
        shown = self.stops.push(self._characters.decode(piece))
        if self.calls is None:
            return shown
        parsed = self.calls.push(shown.text)
        last = self.calls.finish() if shown.stopped else ParsedText()
        return VisibleText(parsed.text + last.text, shown.stopped, parsed.calls + last.calls)

    def finish(self) -> VisibleText:
        """Return the rest, at the end. An incomplete character is dropped."""
        held = self.stops.finish()
        if self.calls is None:
            return VisibleText(held)
        parsed, last = self.calls.push(held), self.calls.finish()
        return VisibleText(parsed.text + last.text, calls=parsed.calls + last.calls)


#: Later, shorter prompts may delay a prompt by this share of the tokens that it has to read.
OVERTAKEN = 0.2


@dataclass(frozen=True, slots=True)
class DrawnToken:
    """A sequence's next token from the model."""

    token: int
    logprob: TokenLogprob | None = None


@dataclass(frozen=True, slots=True)
class AppendedToken:
    """The visible effect of a sampled token."""

    #: Empty for an end token, which is not part of the answer.
    token_ids: tuple[int, ...]
    text: str
    finish: FinishReason | None = None
    calls: tuple[ToolCall, ...] = ()


@dataclass(slots=True, eq=False)
class Sequence:
    id: int
    #: The index of the answer, if there are several.
    answer: int
    #: The prompt, then the answer.
    hashed: HashedTokens
    prompt_tokens: int
    #: The most tokens of the answer, including those that another worker delivered.
    limit: int
    parameters: Parameters
    output: AnswerText
    salt: str = ""
    #: The tokens that existed when it got its slot, and can be computed many at a time.
    bulk: int = 0
    fed: int = 0
    cached: int = 0
    #: Tokens in the slot when it was admitted.
    kept: int = 0
    #: Tokens of later prompts that were read before its own.
    overtaken: int = 0
    tokens: list[int] = field(init=False)

    def __post_init__(self) -> None:
        self.tokens = self.hashed.tokens

    @property
    def reading(self) -> bool:
        """Whether it still reads its prompt, many tokens at a time."""
        return self.fed < self.bulk

    @property
    def spare(self) -> int:
        """How many more tokens of later prompts may be read first. Half of the allowance is available at once, and the rest grows with
        its progress, so that early short prompts leave some of it for later ones."""
        return int(OVERTAKEN * (self.bulk + self.fed - 2 * self.kept) / 2) - self.overtaken

    def replay(self, token: int, piece: bytes | None) -> None:
        """Add a token that another worker delivered, without showing its text. Raises BadRequest if the answer ended with it."""
        self.tokens.append(token)
        if piece is None or self.output.push(piece).stopped or len(self.tokens) - self.prompt_tokens >= self.limit:
            raise errors.BadRequest("delivered: the answer is complete with these tokens", hint="nothing is left to generate")

    def append_token(self, token: int, piece: bytes | None) -> AppendedToken:
        """Add the model's next token; ``piece`` has its bytes, or None for an end token."""
        if piece is None:
            rest = self.output.finish()
            return AppendedToken((), rest.text, FinishReason.STOP, rest.calls)
        self.tokens.append(token)
        shown = self.output.push(piece)
        if shown.stopped:
            return AppendedToken((token,), shown.text, FinishReason.STOP, shown.calls)
        if len(self.tokens) - self.prompt_tokens >= self.limit:
            rest = self.output.finish()
            return AppendedToken((token,), shown.text + rest.text, FinishReason.LENGTH, shown.calls + rest.calls)
        return AppendedToken((token,), shown.text, calls=shown.calls)

    def begin(self, kept: int) -> None:
        """The sequence got a slot with its first ``kept`` tokens."""
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
    """Create a sequence. Raises ContextExceeded if not even one token fits the context after the prompt."""
    room = check_fits(len(prompt.tokens), context_tokens)
    limit = min(parameters.max_tokens or DEFAULT_MAX_TOKENS, room)
    shown = AnswerText(StopSequences(parameters.stop), calls)
    return Sequence(identity, answer, prompt.copy(), len(prompt.tokens), limit, parameters, shown, salt)


def check_fits(prompt_tokens: int, context_tokens: int) -> int:
    """Return the tokens of the context that are left for the answer. Raises ContextExceeded if none is."""
    room = context_tokens - prompt_tokens
    if not prompt_tokens:
        raise errors.BadRequest("the prompt is empty")
    if room < 1:
        raise errors.ContextExceeded(
            # Clients such as LiteLLM recognize these words of OpenAI's.
            f"the prompt has {prompt_tokens} tokens; this model's maximum context length is {context_tokens}, with one for the answer",
            hint=f"shorten the prompt to {context_tokens - 1} tokens, or raise ENGINE_CONTEXT_TOKENS on the worker",
        )
    return room
