"""Converts text to token ids and token ids to bytes with a model's vocabulary. Only the engine's process imports this module."""

import ctypes
from functools import lru_cache

import llama_cpp.llama_cpp as native

from services.inference.engine import sequence
from services.inference.engine.special_tokens import SpecialTokens
from shared import errors
from shared.api.inference import MAX_CONVERTED_BYTES, TOKEN_BYTES

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
        self.control_tokens = frozenset(token for token in range(self.size) if native.llama_vocab_get_attr(vocab, token) & _SPECIAL)
        self.spellings = tuple(self._spelling(token) for token in sorted(self.control_tokens))
        #: Splits a prompt with marked callers' texts into parts to tokenize.
        self.cut = SpecialTokens(self.spellings).cut
        self.end_tokens = frozenset(token for token in range(self.size) if native.llama_vocab_is_eog(vocab, token))
        bos = int(native.llama_vocab_bos(vocab))
        self.bos = self._spelling(bos)
        self.eos = self._spelling(native.llama_vocab_eos(vocab))
        #: The token with which prompts begin; None for models that need none.
        self.first = bos if bos != NO_TOKEN and native.llama_vocab_get_add_bos(vocab) else None
        self.piece = lru_cache(_PIECES_KEPT)(self._piece)
        #: Special tokens that are text in answers, such as the marks of tool calls.
        self.shown_tokens: frozenset[int] = frozenset()

    @property
    def infill(self) -> tuple[str, ...]:
        """Return what marks the three parts of a text with a gap; empty if the model has no such tokens."""
        kinds = (native.llama_vocab_fim_pre, native.llama_vocab_fim_suf, native.llama_vocab_fim_mid)
        spellings = tuple(self._spelling(kind(self._vocab)) for kind in kinds)
        return spellings if all(spellings) else ()

    def show(self, spellings: tuple[str, ...]) -> None:
        self.shown_tokens = frozenset(token for token in self.control_tokens - self.end_tokens if self._spelling(token) in spellings)
        self.piece.cache_clear()

    def tokens_of(self, rendered: str, *, context_tokens: int) -> list[int]:
        """Tokenize a prompt with marked callers' texts. Raises ContextExceeded if it doesn't fit the context."""
        parts = [tokenize(self._vocab, part) for part in self.cut(rendered)]
        # Check before creating a list, which would hold the GIL for 20 ms for a million tokens.
        sequence.check_fits(max(1, sum(count for _, count in parts)), context_tokens)
        tokens = [token for native_tokens, count in parts for token in native_tokens[:count]]
        if self.first is not None and tokens[:1] != [self.first]:
            tokens.insert(0, self.first)
        return tokens

    def tokens_in(self, text: str) -> list[int]:
        """Tokenize a part of an answer, such as the mark that ends thoughts."""
        tokens, count = tokenize(self._vocab, text)
        return tokens[:count]

    def packed_tokens_of(self, rendered: str, *, add_special: bool) -> bytes:
        """Tokenize as ``tokens_of``, but return the ids as TOKEN_BYTES each: a list of a million would hold the GIL."""
        parts = [tokenize(self._vocab, part) for part in self.cut(rendered)]
        packed = b"".join(ctypes.string_at(native_tokens, count * TOKEN_BYTES) for native_tokens, count in parts)
        first = b"" if self.first is None or not add_special else self.first.to_bytes(TOKEN_BYTES, "little")
        return packed if packed.startswith(first) else first + packed

    def text_of(self, packed: bytes) -> bytes:
        """Return the text of token ids, with special tokens spelled out. Raises BadRequest."""
        count = len(packed) // TOKEN_BYTES
        tokens = (native.llama_token * count).from_buffer_copy(packed)
        # llama.cpp would abort.
        if count and not 0 <= min(tokens) <= max(tokens) < self.size:
            raise errors.BadRequest(f"tokens: the ids of this model are from 0 to {self.size - 1}")
        size = abs(native.llama_detokenize(self._vocab, tokens, count, b"", 0, False, True))
        if size > MAX_CONVERTED_BYTES:
            raise errors.BadRequest(f"the text has {size} bytes; at most {MAX_CONVERTED_BYTES} are allowed", hint="send fewer tokens")
        text = ctypes.create_string_buffer(size + 1)
        size = native.llama_detokenize(self._vocab, tokens, count, text, size, False, True)
        return text.raw[:size]

    def _piece(self, token: int, special: bool = False) -> bytes | None:
        """Return the bytes of a token; None for an end token. ``special`` spells out special tokens.

        Raises BadRequest for an id out of range, on which llama.cpp would abort; it can only come from another worker.
        """
        if not 0 <= token < self.size:
            raise errors.BadRequest(f"delivered: this model has no token {token}; its last one is {self.size - 1}")
        return None if token in self.end_tokens else self.spelled(token, special=special or token in self.shown_tokens)

    def spelled(self, token: int, *, special: bool = True) -> bytes:
        size = _PIECE_BYTES
        while True:
            buffer = ctypes.create_string_buffer(size)
            length = native.llama_token_to_piece(self._vocab, token, buffer, size, 0, special)
            if length >= 0:
                return buffer.raw[:length]
            size = -length

    def _spelling(self, token: int) -> str:
        return "" if token == NO_TOKEN else native.llama_vocab_get_text(self._vocab, token).decode("utf-8", "replace")


def tokenize(
    vocab: native.llama_vocab_p, text: str, *, add_special: bool = False, parse_special: bool = True
) -> "tuple[ctypes.Array[ctypes.c_int32], int]":
    """Return an array whose first items are the tokens, and their number. ``parse_special``: special tokens in the text count."""
    raw = text.encode("utf-8", "replace")
    room = len(raw) + 8
    tokens = (native.llama_token * room)()
    count = native.llama_tokenize(vocab, raw, len(raw), tokens, room, add_special, parse_special)
    if count < 0:
        raise errors.BadRequest("the model's tokenizer cannot read this text")
    return tokens, count
