"""Keeps answers to their grammars with llguidance. Only the engine's process imports this module.

`compile` runs in another thread than the rest and releases the GIL. Everything after that takes microseconds for a token that the
grammar allows, and less than a millisecond for the mask of all tokens that it allows.
"""

import hashlib
import re
import threading
from collections import OrderedDict
from typing import Any, Protocol, TypeAlias

import numpy as np
from llguidance import LLMatcher, LLParserLimits, LLTokenizer

from shared import errors

Logits: TypeAlias = "np.ndarray[Any, np.dtype[np.float32]]"

#: An application has few grammars, and compiling one takes milliseconds.
MAX_GRAMMARS = 256
#: SECURITY.md, T6: bounds the time to compile (below 2 s) and of one step (about 10 ms each), and the memory.
LIMITS = LLParserLimits(
    initial_lexer_fuel=500_000,
    step_lexer_fuel=100_000,
    step_max_items=10_000,
    max_lexer_states=20_000,
    max_grammar_size=100_000,
    verbose_errors=False,
)
#: llguidance panics beyond 1,024.
MAX_TOKEN_BYTES = 512
_REASON_CHARACTERS = 300
#: How many bytes of an answer's end are searched for a trigger.
MAX_TRIGGER = 256
#: In llguidance's messages: its place in our text, and the lines that show it.
_PLACE = re.compile(r"^(?:at )?\d+\(\d+\): (?:failed to compile JSON schema: )?|\n? *\d+ \| .*|\n *\^+ *$|\n?<non-verbose/>", re.MULTILINE)


class Vocabulary(Protocol):
    """The tokens of a model, implemented by `ModelVocabulary`."""

    size: int
    end_tokens: frozenset[int]
    control_tokens: frozenset[int]

    #: Control tokens that are text in answers.
    shown_tokens: frozenset[int]

    def spelled(self, token: int) -> bytes: ...


class Constraints:
    """The grammars of one model."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        self._tokenizer = LLTokenizer(_TokenList(vocabulary), eos_token=sorted(vocabulary.end_tokens) or [0])  # type: ignore[arg-type]
        self._lock = threading.Lock()
        #: By the grammar's hash; some of them have errors. The last one is the newest.
        self._compiled: OrderedDict[bytes, LLMatcher] = OrderedDict()

    def compile(self, grammar: str, field: str = "format") -> LLMatcher:
        """Return the beginning of a grammar, to copy. Safe to call in any thread. Raises BadRequest, which starts with the field."""
        key = hashlib.sha256(grammar.encode()).digest()
        with self._lock:
            found = self._compiled.get(key)
        if found is None:
            found = LLMatcher(self._tokenizer, grammar, limits=LIMITS, log_level=0)
            if not found.is_error():
                # Finds grammars that no answer fits, and makes the first step fast.
                found.compute_bitmask()
        with self._lock:
            self._compiled[key] = found
            self._compiled.move_to_end(key)
            if len(self._compiled) > MAX_GRAMMARS:
                self._compiled.popitem(last=False)
        if found.is_error():
            raise errors.BadRequest(f"{field}: {_reason(found.get_error())}", hint="simplify the schema or grammar")
        return found

    def start(self, grammar: str, triggers: tuple[str, ...] = (), field: str = "format") -> "Constraint":
        """Begin an answer, whose grammar applies from a trigger on, if there are any. Raises BadRequest."""
        return Constraint(
            self.compile(grammar, field).deep_copy(), self._vocabulary, self._tokenizer, triggers, may_be_empty=field != "tools"
        )


class Constraint:
    """The place of one answer in its grammar."""

    def __init__(
        self, matcher: LLMatcher, vocabulary: Vocabulary, tokenizer: LLTokenizer, triggers: tuple[str, ...], *, may_be_empty: bool
    ) -> None:
        self._matcher = matcher
        self._vocabulary = vocabulary
        self._tokenizer = tokenizer
        self._triggers = [re.compile(trigger.encode()) for trigger in triggers]
        #: Before the trigger: the answer so far.
        self._text = b""
        self._may_end = may_be_empty

    @property
    def applies(self) -> bool:
        """Whether a trigger was found. Before that, every token is allowed."""
        return not self._triggers

    @property
    def is_too_costly(self) -> bool:
        """Whether the answer must end, because the grammar exceeded a limit."""
        return self._matcher.is_error()

    def allows(self, token: int) -> bool:
        if token in self._vocabulary.end_tokens:
            return self._may_end and self._matcher.is_accepting()
        return self._matcher.validate_tokens([token]) == 1

    def masked(self, logits: Logits) -> Logits:
        """Return the logits without the tokens that the grammar does not allow."""
        mask = np.unpackbits(np.frombuffer(self._matcher.compute_bitmask(), np.uint8), count=len(logits), bitorder="little").view(bool)
        if not self._may_end:
            mask[list(self._vocabulary.end_tokens)] = False
        return np.where(mask, logits, np.float32("-inf"))

    def accept(self, token: int) -> None:
        if not self.applies:
            self._search(self._vocabulary.spelled(token) if self._is_text(token) else b"")
            return
        self._matcher.consume_token(token)
        self._may_end = True

    def _is_text(self, token: int) -> bool:
        return token not in self._vocabulary.control_tokens or token in self._vocabulary.shown_tokens

    def _search(self, piece: bytes) -> None:
        """Look for a trigger that ends in this piece. The grammar begins with its first group, or with all of it."""
        begin = max(0, len(self._text) - MAX_TRIGGER)
        self._text += piece
        for found in (trigger.search(self._text, begin) for trigger in self._triggers):
            if found is None:
                continue
            start = next((found.start(group) for group in range(1, found.re.groups + 1) if found.start(group) >= 0), found.start())
            try:
                head = self._text[start:].decode()
            except UnicodeDecodeError:
                # A part of a character; the next token completes it.
                continue
            tokens = self._tokenizer.greedy_tokenize(head)
            if self._matcher.validate_tokens(tokens) == len(tokens):
                self._matcher.consume_tokens(tokens)
                self._triggers, self._text = [], b""
                self._may_end = self._may_end or bool(tokens)
                return


class _TokenList:
    """A vocabulary in the form that llguidance reads. It is never asked to tokenize: see `lark.HEADER`."""

    is_tokenizer_wrapper = True
    bos_token_id = None

    def __init__(self, vocabulary: Vocabulary) -> None:
        self.eos_token_id = min(vocabulary.end_tokens, default=0)
        texts = (vocabulary.spelled(token) for token in range(vocabulary.size))
        # Those without a text are never allowed.
        self.tokens = [text if len(text) <= MAX_TOKEN_BYTES else b"" for text in texts] or [b""]
        self.special_token_ids = sorted((vocabulary.control_tokens - vocabulary.shown_tokens) | vocabulary.end_tokens)

    def __call__(self, _text: bytes) -> list[int]:
        return []


def _reason(message: str) -> str:
    text = " ".join(_PLACE.sub("", message).split())
    if text.startswith("NoExtension"):
        return "no answer fits it"
    return text if len(text) <= _REASON_CHARACTERS else text[: _REASON_CHARACTERS - 1] + "…"
