"""A toy model for tests of the loop: it keeps a memory like llama.cpp's, and answers from what it finds there.

It is strict: it accepts only the sequence's own tokens, in order and without a gap, after what is already in the slot.
"""

import itertools
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from services.inference.engine.engine_messages import ConvertTokens, PreparedPrompt, StartGeneration
from services.inference.engine.kv_slots import KvLayout, SlotPlace
from services.inference.engine.prompt_cache import HashedTokens
from services.inference.engine.sampling import Parameters, mix
from services.inference.engine.scheduler import Feed
from services.inference.engine.sequence import DrawnToken, ImagePrompt
from services.inference.engine.special_tokens import IMAGE_MARK
from services.inference.images.prompt_images import DecodedImage, ImageSpan
from shared import errors
from shared.api.inference import TokenChance, TokenLogprob

#: Ends an answer; no byte of any UTF-8 text.
END_TOKEN = 0xFF
MAX_ADAPTERS = 16
#: With a temperature, one in this many answer tokens ends the answer.
_ENDS = 40


@dataclass(frozen=True)
class Cell:
    """What the model stores for one token."""

    token: int
    number: int
    adapter: int = 0


@dataclass
class ToyModel:
    """A token is a byte. At temperature 0, the model repeats the prompt; at 1, each letter depends on all tokens in its slot and on
    (seed, position), so that wrong memory or wrong randomness changes the answer. Between them, it repeats the prompt with mistakes."""

    layout: KvLayout = KvLayout.POOL
    context_tokens: int = 64
    pool_tokens: int = 256
    step_tokens: int = 8
    unnoticed_seconds: float = 0.0
    slots: int = 4
    can_cut: bool = True
    can_cut_saved: bool = True
    drafts: bool = True
    longest_token_bytes: int = 4
    decode_seconds: float = 0.0
    #: How long a batch takes.
    batch_seconds: float = 0.0
    crash: bool = False
    #: How many more times `settle` keeps only half of the prefix.
    unsettled: int = 0
    saves: int = 0
    restored: int = 0
    memory: dict[int, list[Cell]] = field(default_factory=dict)
    shown: tuple[str, ...] | None = None
    #: Sequences that have begun and not ended.
    begun: dict[tuple[int, int], Parameters] = field(default_factory=dict)
    delivered: dict[tuple[int, int], tuple[int, ...]] = field(default_factory=dict)
    #: (request, start, count) of every feed, batch by batch, without guesses.
    batches: list[list[tuple[int, int, int]]] = field(default_factory=list)
    #: The guesses of every batch, and how many were right.
    drafted: list[tuple[int, int]] = field(default_factory=list)
    #: The adapter of every batch.
    adapters: list[int] = field(default_factory=list)
    _numbers: "itertools.count[int]" = field(default_factory=itertools.count)
    #: Saved states by the id of the returned memoryview, with that memoryview.
    _states: dict[int, tuple[memoryview, list[Cell]]] = field(default_factory=dict)

    def prompt_tokens(self, prompt: PreparedPrompt) -> list[int]:
        if prompt.text == "refuse":
            raise errors.BadRequest("the model's tokenizer cannot read this prompt")
        return list(prompt.text.encode())

    def read_images(self, command: StartGeneration, images: Sequence[DecodedImage], is_wanted: Callable[[], bool]) -> ImagePrompt:
        """Represent an image by four tokens, the first bytes of its pixels, which are computed together."""
        first, *others = command.prompt.text.split(IMAGE_MARK)
        tokens, spans = list(first.encode()), []
        for image, text in zip(images, others, strict=True):
            assert is_wanted()
            spans.append(ImageSpan(len(tokens), len(tokens) + 4, 4, is_whole=True))
            tokens += [*image.rgb[:4], *text.encode()]
        return ImagePrompt(HashedTokens(tokens, tuple(spans)), {span.start: span for span in spans}, seconds=0.5)

    def convert(self, command: ConvertTokens) -> bytes:
        """Return the bytes; a text and its tokens are the same bytes."""
        return bytes(self.prompt_tokens(PreparedPrompt(command.prompt))) if command.token_ids is None else command.token_ids

    def show(self, spellings: tuple[str, ...]) -> None:
        self.shown = spellings

    def begin(self, sequence: tuple[int, int], parameters: Parameters, prompt: PreparedPrompt, delivered: Sequence[int]) -> None:
        assert sequence not in self.begun, "begun twice"
        if prompt.grammar == "refuse" and sequence[1] == parameters.n - 1:
            raise errors.BadRequest("format: not a grammar")
        self.begun[sequence] = parameters
        self.delivered[sequence] = tuple(delivered)

    def end(self, sequence: tuple[int, int]) -> None:
        self.begun.pop(sequence, None)

    def saved_bytes(self, slot: int) -> int:
        return len(self.memory.get(slot, []))

    def saved_tokens(self, slot: int, tokens: HashedTokens) -> int:
        return len(tokens.tokens)

    def save(self, slot: int, position: int) -> memoryview | None:
        self.saves += 1
        assert position == len(self.memory[slot])
        state = memoryview(bytes(cell.token for cell in self.memory[slot]))
        self._states[id(state)] = state, list(self.memory[slot])
        return state

    def check_adapter(self, number: int) -> None:
        if number > MAX_ADAPTERS:
            raise errors.Unavailable("there is no such adapter")

    def settle(self, place: SlotPlace) -> int:
        for slot in place.evicted:
            self.clear(slot)
        held = self.memory.get(place.slot, [])
        if place.saved is not None:
            self.restored += 1
            held = self.memory[place.slot] = [replace(cell, number=next(self._numbers)) for cell in self._states[id(place.saved)][1]]
            self._check_room()
        if place.source is not None:
            held = list(self.memory.get(place.source, []))
            if self.layout is KvLayout.STREAMS:
                held = [replace(cell, number=next(self._numbers)) for cell in held]
        if self.unsettled:
            self.unsettled -= 1
            # Only half of the prefix is left.
            self.memory[place.slot] = held[: place.kept // 2]
            return place.kept // 2
        assert len(held) >= place.kept, "the slot does not hold what is counted on"
        self.memory[place.slot] = held[: place.kept]
        return place.kept

    def clear(self, slot: int) -> None:
        self.memory[slot] = []

    def can_draft(self, adapter: int) -> bool:
        return self.drafts

    def run(self, feeds: Sequence[Feed]) -> list[list[DrawnToken]]:
        if self.crash:
            raise errors.ModelCrashed("llama_decode gave -3")
        self._check(feeds)
        self.decode_seconds += self.batch_seconds
        (adapter,) = {feed.sequence.adapter for feed in feeds}
        self.adapters.append(adapter)
        self.batches.append([(feed.sequence.id, feed.start, len(feed.tokens)) for feed in feeds])
        drawn = [self._run(feed) for feed in feeds]
        self._check_room()
        self.drafted.append((len(feeds[0].draft), len(drawn[0]) - 1 if feeds[0].draft else 0))
        return drawn

    def _check_room(self) -> None:
        assert len({cell.number for held in self.memory.values() for cell in held}) <= self.pool_tokens, "more than there is room for"

    def piece(self, token: int) -> bytes | None:
        return None if token == END_TOKEN else bytes([token])

    def _check(self, feeds: Sequence[Feed]) -> None:
        """Check that llama.cpp can compute this batch, with neighboring slots together."""
        assert feeds
        slots = [feed.slot for feed in feeds]
        assert slots == sorted(set(slots))
        assert len(slots) <= self.slots
        assert all(feed.tokens for feed in feeds)
        for feed in feeds:
            inside = [span for span in feed.sequence.hashed.spans if span.start < feed.start + len(feed.tokens) and feed.start < span.end]
            assert inside == ([] if feed.image is None else [feed.image]), "tokens and rows of an image in one feed"
            assert feed.image is None or (feed.start, len(feed.tokens)) == (feed.image.start, 4), "an image in pieces"
        assert sum(len(feed.tokens) + len(feed.draft) for feed in feeds) <= self.step_tokens + self.slots
        assert len(feeds) == 1 or not any(feed.draft for feed in feeds), "guesses beside others"

    def _run(self, feed: Feed) -> list[DrawnToken]:
        held = self.memory.setdefault(feed.slot, [])
        sequence = feed.sequence
        assert [cell.token for cell in held] == sequence.tokens[: feed.start], "other tokens in the slot, a gap, or fed twice"
        held.extend(Cell(token, next(self._numbers), sequence.adapter) for token in feed.tokens)
        assert {cell.adapter for cell in held} == {sequence.adapter}, "computed with another adapter"
        assert [cell.token for cell in held] == sequence.tokens[: len(held)]
        assert len(held) <= self.context_tokens
        if not feed.sample:
            assert not feed.draft
            return []
        assert len(held) == len(sequence.tokens), "drawn in the middle"
        return self._verify(feed, held)

    def _verify(self, feed: Feed, held: list[Cell]) -> list[DrawnToken]:
        sequence, drawn = feed.sequence, list[DrawnToken]()
        assert END_TOKEN not in feed.draft, "a guess that would be followed by nothing"
        assert len(held) + len(feed.draft) < sequence.prompt_tokens + sequence.limit, "guesses beyond the limit"
        held.extend(Cell(token, next(self._numbers), sequence.adapter) for token in feed.draft)
        self._check_room()
        tokens = [cell.token for cell in held]
        for at, guess in enumerate((*feed.draft, None), len(sequence.tokens)):
            drawn.append(self._draw(feed, tokens[:at]))
            if drawn[-1].token != guess:
                break
        del held[len(sequence.tokens) + len(drawn) - 1 :]
        return drawn

    def _draw(self, feed: Feed, held: list[int]) -> DrawnToken:
        prompt = feed.sequence.prompt_tokens
        parameters = self.begun[feed.sequence.id, feed.sequence.answer]
        letter = _letter(held, parameters.seed + feed.sequence.adapter)
        repeats = letter % 100 >= 100 * parameters.temperature
        token = self._echo(held, prompt) if repeats else letter
        if parameters.top_logprobs is None:
            return DrawnToken(token)
        return DrawnToken(token, TokenLogprob(TokenChance(token, self.piece(token) or b"", -float(len(held)))))

    def _echo(self, held: list[int], prompt: int) -> int:
        return END_TOKEN if len(held) == 2 * prompt else held[len(held) - prompt]


def _letter(held: list[int], seed: int) -> int:
    drawn = zlib.crc32(bytes(held)) ^ mix(seed, len(held))
    return END_TOKEN if drawn // 26 % _ENDS == 0 else ord("a") + drawn % 26
