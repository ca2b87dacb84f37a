"""Keeps prompts in RAM that have lost their slots in the KV cache, and finds the longest prefix of a new one.  Pure.

A prompt is what llama.cpp saves of a slot, with the tokens that it stands for. Only prompts with the same salt share anything.
"""

import hashlib
from array import array
from collections import OrderedDict
from dataclasses import dataclass

from services.inference.images.prompt_images import ImageSpan

#: Tokens per hash. It covers all blocks before its own and has 128 bits of BLAKE2, so equal hashes mean equal tokens.
BLOCK = 64
_HASH_BYTES = 16


class HashedTokens:
    """A list of tokens with a hash per block, to compare long prompts. Its owner may only append to it."""

    def __init__(self, tokens: list[int], spans: tuple[ImageSpan, ...] = ()) -> None:
        self.tokens = tokens
        #: In the order of the tokens.
        self.spans = spans
        self._hashes: list[bytes] = []
        self.hash_blocks()

    def hash_blocks(self) -> None:
        """Hash new complete blocks, in 2 µs each."""
        hashes, tokens = self._hashes, self.tokens
        last = hashes[-1] if hashes else b""
        for at in range(len(hashes) * BLOCK, len(tokens) - BLOCK + 1, BLOCK):
            last = hashlib.blake2b(last + array("i", tokens[at : at + BLOCK]).tobytes(), digest_size=_HASH_BYTES).digest()
            hashes.append(last)

    def first(self, count: int) -> "HashedTokens":
        """Return a copy of the first ``count`` tokens."""
        found = HashedTokens([], self.spans)
        found.tokens, found._hashes = self.tokens[:count], self._hashes[: count // BLOCK]
        return found

    def piece(self, start: int, end: int) -> tuple[ImageSpan | None, int]:
        """Return where the tokens from ``start`` end, up to ``end``, that a batch can hold: those of one image, or of no image."""
        for span in self.spans:
            if start < span.start:
                return None, min(end, span.start)
            if start < span.end:
                return span, span.end if span.is_whole else min(end, span.end)
        return None, end

    def common(self, other: "HashedTokens", most: int, guess: int = 0) -> int:
        """Return the length of the common prefix, at most ``most`` and without a part of an image. A good ``guess`` makes it faster."""
        common = self._common(other, most, guess)
        return next((span.start for span in self.spans if span.start < common < span.end), common)

    def _common(self, other: "HashedTokens", most: int, guess: int) -> int:
        most = min(most, len(self.tokens), len(other.tokens))
        at = BLOCK * _common_blocks(self._hashes, other._hashes, most // BLOCK, guess // BLOCK)
        end = min(at + BLOCK, most)
        one, two = self.tokens[at:end], other.tokens[at:end]
        if one == two:
            return end
        for token, its in zip(one, two, strict=True):
            if token != its:
                break
            at += 1
        return at


def _common_blocks(one: list[bytes], two: list[bytes], most: int, guess: int) -> int:
    """Count equal blocks among the first ``most`` by bisection."""
    same, differs, middle = 0, most + 1, min(guess, most) or most
    while differs - same > 1:
        if one[middle - 1] == two[middle - 1]:
            same = middle
            # After a correct guess, try the next block first.
            middle = same + 1 if middle == guess else (same + differs) // 2
        else:
            differs = middle
            middle = (same + differs) // 2
    return same


#: Saving and restoring fewer tokens is not worth the copy.
WORTH_SAVING_TOKENS = 256
#: Copies that take longer would delay running answers.
COPY_SECONDS = 0.02
#: Before the first copy. Most of the time goes into fresh pages.
_BYTES_PER_SECOND = 1e9
#: Weight of the newest copy in the mean.
_WEIGHT = 0.2


@dataclass(frozen=True, slots=True, eq=False)
class SavedPrompt:
    salt: str
    tokens: HashedTokens
    #: Opaque; llama.cpp reads it back.
    state: memoryview


class PromptCache:
    """Drops the least recently used prompts beyond ``capacity`` bytes; 0 keeps nothing."""

    def __init__(self, capacity: int, *, can_cut: bool = True) -> None:
        """``can_cut``: a part of a saved prompt can be restored, too."""
        self.capacity = capacity
        self._can_cut = can_cut
        self.bytes = 0
        self.hits = 0
        self._prompts: OrderedDict[SavedPrompt, None] = OrderedDict()
        self._rate = _BYTES_PER_SECOND

    def find(self, wanted: HashedTokens, salt: str, most: int, above: int) -> tuple[SavedPrompt, int] | None:
        """Return the prompt with the longest prefix of these tokens, and its length up to ``most``; None if it is not much longer than
        ``above``."""
        best, longest = None, above + WORTH_SAVING_TOKENS - 1
        for prompt in self._prompts:
            common = prompt.tokens.common(wanted, most, guess=longest) if prompt.salt == salt else 0
            if common > longest and (self._can_cut or common == len(prompt.tokens.tokens)):
                best, longest = prompt, common
        if best is None:
            return None
        self._prompts.move_to_end(best)
        self.hits += 1
        return best, longest

    def wants(self, tokens: HashedTokens, salt: str, above: int, size: int, spare_seconds: float) -> bool:
        """Whether to save a slot of ``size`` bytes with these tokens, of which other slots hold ``above``. ``spare_seconds``: how long
        nobody waits for the engine."""
        count = len(tokens.tokens)
        if not salt or size > self.capacity or count - above < WORTH_SAVING_TOKENS or size > self._rate * max(COPY_SECONDS, spare_seconds):
            return False
        return all(prompt.salt != salt or count - prompt.tokens.common(tokens, count) >= WORTH_SAVING_TOKENS for prompt in self._prompts)

    def put(self, saved: SavedPrompt, seconds: float) -> None:
        """Add a prompt whose copy took so long. It replaces those that are its beginning."""
        size = len(saved.state)
        self._rate = (1 - _WEIGHT) * self._rate + _WEIGHT * size / max(seconds, 1e-6)
        for prompt in [one for one in self._prompts if one.salt == saved.salt]:
            count = len(prompt.tokens.tokens)
            if prompt.tokens.common(saved.tokens, count) == count:
                self._drop(prompt)
        while self.bytes + size > self.capacity:
            self._drop(next(iter(self._prompts)))
        self._prompts[saved] = None
        self.bytes += size

    def _drop(self, prompt: SavedPrompt) -> None:
        del self._prompts[prompt]
        self.bytes -= len(prompt.state)
