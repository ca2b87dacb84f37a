"""Tokens with a hash per block, to find the common prefix of two long prompts without comparing all tokens.  Pure.

The hash of a block covers all blocks before it. It has 128 bits of BLAKE2, so equal hashes mean equal tokens.
"""

import hashlib
from array import array

BLOCK = 64
_HASH_BYTES = 16


class HashedTokens:
    """A list of tokens, to which its owner may only append."""

    def __init__(self, tokens: list[int]) -> None:
        self.tokens = tokens
        self._hashes: list[bytes] = []
        self.hash_blocks()

    def hash_blocks(self) -> None:
        """Hash new complete blocks, in 2 µs each."""
        hashes, tokens = self._hashes, self.tokens
        last = hashes[-1] if hashes else b""
        for at in range(len(hashes) * BLOCK, len(tokens) - BLOCK + 1, BLOCK):
            last = hashlib.blake2b(last + array("i", tokens[at : at + BLOCK]).tobytes(), digest_size=_HASH_BYTES).digest()
            hashes.append(last)

    def copy(self) -> "HashedTokens":
        copied = HashedTokens([])
        copied.tokens, copied._hashes = self.tokens.copy(), self._hashes.copy()
        return copied

    def common(self, other: "HashedTokens", most: int, guess: int = 0) -> int:
        """Return the length of the common prefix, at most ``most``. A good ``guess`` makes it faster."""
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
