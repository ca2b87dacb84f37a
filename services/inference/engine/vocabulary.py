"""Converts text to token ids and token ids to bytes with a model's vocabulary. Only the engine's process imports this module."""

import ctypes
from collections.abc import Iterator
from functools import lru_cache

import llama_cpp.llama_cpp as native

from services.inference.engine import prompt, sequence
from shared import errors

NO_TOKEN = -1
_SPECIAL = native.LLAMA_TOKEN_ATTR_CONTROL | native.LLAMA_TOKEN_ATTR_UNKNOWN
#: Most pieces are shorter; for others, llama.cpp returns the length.
_PIECE_BYTES = 64
#: The largest vocabularies have a quarter of a million pieces, of which answers use few.
_PIECES_KEPT = 65_536


class ModelVocabulary:
    """Valid as long as the model is."""

    def __init__(self, vocab: native.llama_vocab_p) -> None:
        self._vocab = vocab
        self.size = int(native.llama_vocab_n_tokens(vocab))
        #: An upper bound: the vocabulary's spelling is never shorter than the text.
        self.longest_token_bytes = max((len(native.llama_vocab_get_text(vocab, token)) for token in range(self.size)), default=1)
        self.special = prompt.SpecialTokens(tuple(self._special_spellings()))
        self.end_tokens = frozenset(token for token in range(self.size) if native.llama_vocab_is_eog(vocab, token))
        self._bos = native.llama_vocab_bos(vocab) if native.llama_vocab_get_add_bos(vocab) else NO_TOKEN
        self.piece = lru_cache(_PIECES_KEPT)(self._piece)
        #: Special tokens that mark tool calls and must be visible if there are tools.
        self.shown_for_tools: frozenset[int] = frozenset()

    @property
    def bos(self) -> str:
        return self._spelling(native.llama_vocab_bos(self._vocab))

    @property
    def eos(self) -> str:
        return self._spelling(native.llama_vocab_eos(self._vocab))

    def show_for_tools(self, spellings: tuple[str, ...]) -> None:
        self.shown_for_tools = frozenset(token for token in range(self.size) if self._spelling(token) in spellings)

    def tokens_of(self, rendered: str, *, context_tokens: int) -> list[int]:
        """Tokenize a prompt with marked callers' texts. Raises ContextExceeded if it doesn't fit the context."""
        parts = [self._tokenize(part) for part in self.special.cut(rendered)]
        # Check before creating a list, which would hold the GIL for 20 ms for a million tokens.
        sequence.check_fits(max(1, sum(count for _, count in parts)), context_tokens)
        tokens = [token for native_tokens, count in parts for token in native_tokens[:count]]
        if self._bos != NO_TOKEN and tokens[:1] != [self._bos]:
            tokens.insert(0, self._bos)
        return tokens

    def _piece(self, token: int, special: bool = False) -> bytes | None:
        """Return the bytes of a token; None for an end token. ``special`` spells out special tokens.

        Raises BadRequest for an id out of range, on which llama.cpp would abort; it can only come from another worker.
        """
        if not 0 <= token < self.size:
            raise errors.BadRequest(f"delivered: this model has no token {token}; its last one is {self.size - 1}")
        if token in self.end_tokens:
            return None
        size = _PIECE_BYTES
        while True:
            buffer = ctypes.create_string_buffer(size)
            length = native.llama_token_to_piece(self._vocab, token, buffer, size, 0, special)
            if length >= 0:
                return buffer.raw[:length]
            size = -length

    def _tokenize(self, part: str) -> "tuple[ctypes.Array[ctypes.c_int32], int]":
        raw = part.encode("utf-8", "replace")
        room = len(raw) + 8
        tokens = (native.llama_token * room)()
        count = native.llama_tokenize(self._vocab, raw, len(raw), tokens, room, False, True)
        if count < 0:
            raise errors.BadRequest("the model's tokenizer cannot read this prompt")
        return tokens, count

    def _special_spellings(self) -> Iterator[str]:
        for token in range(self.size):
            if native.llama_vocab_get_attr(self._vocab, token) & _SPECIAL:
                yield self._spelling(token)

    def _spelling(self, token: int) -> str:
        return "" if token == NO_TOKEN else native.llama_vocab_get_text(self._vocab, token).decode("utf-8", "replace")
