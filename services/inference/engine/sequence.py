"""One answer in the engine: its tokens and text, how many tokens are computed, and when it ends.  Pure."""

import codecs
import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from services.inference.engine.engine_messages import AnswerProgress, ThoughtBudget
from services.inference.engine.lookup import PromptLookup
from services.inference.engine.prompt_cache import HashedTokens
from services.inference.engine.sampling import Parameters
from shared import errors
from shared.api.inference import TokenLogprob
from shared.types import FinishReason

#: Later, shorter prompts may delay a prompt by this share of the tokens that it has to read.
OVERTAKEN = 0.2
#: The end of a prompt begins the answer, perhaps with a tag for thoughts, so the next turn of a chat often has other tokens there.
LAST_TOKENS = 8


@dataclass(frozen=True, slots=True)
class DrawnToken:
    """A sequence's next token from the model."""

    token: int
    logprob: TokenLogprob | None = None
    #: The answer's grammar exceeded a limit, so the answer ends without this token.
    is_cut: bool = False


@dataclass(frozen=True, slots=True)
class ImagePrompt:
    """A prompt with images, or without."""

    hashed: HashedTokens
    #: For the model: the embeddings of images, by their first token.
    rows: Mapping[int, object] = field(default_factory=dict)
    #: How long they were computed.
    seconds: float = 0.0


class ThoughtLimit:
    """Ends the thoughts of an answer by writing their closing tag."""

    def __init__(self, budget: ThoughtBudget, closing: list[int]) -> None:
        """``closing`` are the tokens of the closing tag."""
        self._start = budget.start.encode()
        self._ends = [end.encode() for end in budget.ends]
        self._left = math.inf if budget.tokens is None else budget.tokens
        self._must_continue = budget.must_continue
        self._closing = closing
        self._text = b""
        self._is_over = False

    @property
    def next_token(self) -> int | None:
        """The token that must come next; None if the model may draw one."""
        is_spent = not self._start and self._left <= 0 and not self._is_over
        return self._closing[0] if is_spent and self._closing else None

    def end(self) -> int | None:
        """The model ends its answer. Return the token that must come instead, if there is one."""
        if self._must_continue:
            self._left = 0
        return self.next_token

    def accept(self, piece: bytes) -> None:
        """A token with these bytes was added."""
        if self._is_over:
            return
        if self.next_token is not None:
            self._closing = self._closing[1:]
            self._is_over = not self._closing
            return
        self._left -= 1
        if self._start:
            self._begin(piece)
        else:
            # No tag is longer than this and the piece.
            self._text = self._text[-max(map(len, self._ends)) :] + piece
            self._is_over = any(end in self._text for end in self._ends)

    def _begin(self, piece: bytes) -> None:
        """Find out whether the answer begins with thoughts."""
        self._text = (self._text + piece).lstrip()
        if self._text.startswith(self._start):
            self._start, self._text = b"", self._text[len(self._start) :]
        elif not self._start.startswith(self._text):
            self._is_over = True


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
    salt: str = ""
    #: The number of the adapter that computes it; 0 for none.
    adapter: int = 0
    #: Nobody waits for it: live sequences go first.
    is_batch: bool = False
    #: For the model: the embeddings of the prompt's images, by their first token.
    rows: Mapping[int, object] = field(default_factory=dict)
    #: The tokens that existed when it got its slot, and can be computed many at a time.
    bulk: int = 0
    #: A step ends there, so that the state can be copied; 0 for nowhere.
    pause: int = 0
    fed: int = 0
    cached: int = 0
    #: Tokens in the slot when it was admitted.
    kept: int = 0
    #: Tokens of later prompts that were read before its own.
    overtaken: int = 0
    #: How long the steps took that computed it, if it is of a batch.
    seconds: float = 0.0
    #: None for an answer without drafts.
    lookup: PromptLookup | None = None
    tokens: list[int] = field(init=False)
    #: Invalid bytes become U+FFFD; incomplete characters are held back, and dropped at the end.
    _characters: codecs.IncrementalDecoder = field(default_factory=lambda: codecs.getincrementaldecoder("utf-8")("replace"))

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

    def replay(self, token: int, piece: bytes | None) -> str:
        """Add a token that another worker delivered, and return its text. Raises BadRequest if the answer ended with it."""
        self.tokens.append(token)
        if piece is None or len(self.tokens) - self.prompt_tokens >= self.limit:
            raise already_complete()
        return self._characters.decode(piece)

    def append(self, drawn: DrawnToken, piece: bytes | None) -> AnswerProgress:
        """Add the model's next token; ``piece`` has its bytes, or None for an end token, which is not a part of the answer."""
        if drawn.is_cut or piece is None:
            reason = FinishReason.LENGTH if drawn.is_cut else FinishReason.STOP
            return AnswerProgress(self.id, (), "", reason, self.answer, self.cached, seconds=self.seconds)
        if self.lookup is not None:
            self.lookup.record(drawn.token)
        self.tokens.append(drawn.token)
        finish = FinishReason.LENGTH if len(self.tokens) - self.prompt_tokens >= self.limit else None
        logprobs = () if drawn.logprob is None else (drawn.logprob,)
        text = self._characters.decode(piece)
        return AnswerProgress(self.id, (drawn.token,), text, finish, self.answer, self.cached, logprobs, self.seconds)

    def draft(self, most: int) -> tuple[int, ...]:
        """Return the guessed tokens that the next step should also compute, at most ``most``."""
        # It draws one more.
        left = self.limit - (len(self.tokens) - self.prompt_tokens) - 1
        return () if self.lookup is None else self.lookup.plan(min(left, most))

    def begin(self, kept: int, *, pauses: bool = False) -> None:
        """The sequence got a slot with its first ``kept`` tokens. ``pauses``: set ``pause``."""
        self.fed = self.kept = kept
        self.overtaken = 0
        self.bulk = len(self.tokens)
        near = max(0, self.bulk - LAST_TOKENS)
        self.pause = next((span.end for span in self.hashed.spans if span.start < near < span.end), near) if pauses else 0
        self.cached = max(self.cached, min(kept, self.prompt_tokens))


def start(
    identity: int,
    answer: int,
    prompt: ImagePrompt,
    parameters: Parameters,
    *,
    context_tokens: int,
    salt: str = "",
    adapter: int = 0,
    is_batch: bool = False,
) -> Sequence:
    """Create a sequence. Raises ContextExceeded if not even one token fits the context after the prompt."""
    hashed = prompt.hashed.first(len(prompt.hashed.tokens))
    room = check_fits(len(hashed.tokens), context_tokens)
    limit = min(parameters.max_tokens or room, room)
    return Sequence(identity, answer, hashed, len(hashed.tokens), limit, parameters, salt, adapter, is_batch, prompt.rows)


def already_complete() -> errors.BadRequest:
    return errors.BadRequest("delivered: the answer is complete with these tokens", hint="nothing is left to generate")


def check_fits(prompt_tokens: int, context_tokens: int) -> int:
    """Return the tokens of the context that are left for the answer. Raises ContextExceeded if none is."""
    room = context_tokens - prompt_tokens
    if not prompt_tokens:
        raise errors.BadRequest("the prompt is empty")
    if room < 1:
        hint = f"shorten the prompt to {context_tokens - 1} tokens, or raise ENGINE_CONTEXT_TOKENS on the worker"
        raise errors.ContextExceeded.of_tokens(prompt_tokens, context_tokens, hint=hint)
    return room
