"""Answers with a vocabulary of single bytes: what a grammar accepts, and random texts of a grammar."""

import json
import random

import numpy as np

from services.inference.structured_output import json_schema, lark
from services.inference.structured_output.constraint import Constraint, Constraints

END = 256
#: A special token, which is written `<mark>`.
MARK = 257
_MAX_BYTES = 5000


class ByteVocabulary:
    size = 258
    end_tokens: frozenset[int] = frozenset({END})
    control_tokens: frozenset[int] = frozenset({MARK})
    shown_tokens: frozenset[int] = frozenset()

    def spelled(self, token: int) -> bytes:
        return {END: b"<end>", MARK: b"<mark>"}.get(token) or bytes([token])


def constraints(*, shown: bool = False) -> Constraints:
    """With ``shown``, the special token is text in answers."""
    vocabulary = ByteVocabulary()
    vocabulary.shown_tokens = frozenset({MARK} if shown else ())
    return Constraints(vocabulary)


BYTES = constraints()


def grammar_of(schema: object) -> str:
    return lark.grammar(f"%json {json_schema.prepared(json.dumps(schema))}")


def compact(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def fits(grammar: str, text: str | list[int]) -> bool:
    constraint = BYTES.start(grammar)
    return all(_accepts(constraint, token) for token in (text.encode() if isinstance(text, str) else text)) and constraint.allows(END)


def _accepts(constraint: Constraint, token: int) -> bool:
    if not constraint.allows(token):
        return False
    constraint.accept(token)
    return True


def drawn(grammar: str, rng: random.Random) -> str:
    """Return a random text of the grammar. Brackets and quotes are drawn more often, so that it ends."""
    constraint, text = BYTES.start(grammar), bytearray()
    while len(text) < _MAX_BYTES:
        masked = constraint.masked(np.zeros(ByteVocabulary.size, np.float32))
        allowed = [int(token) for token in np.flatnonzero(masked == 0.0)]
        ending = [token for token in allowed if token == END or token in b'"]}']
        token = rng.choice(ending if ending and rng.random() < 0.4 else allowed)
        assert constraint.allows(token)
        if token == END:
            return text.decode()
        constraint.accept(token)
        text.append(token)
    raise AssertionError("the text has no end")
