"""Counts what an answer has up to one of its chunks, and what of it is billed. Pure; nobody else counts an answer's tokens."""

import msgspec

from services.gateway.facts.call_parts import pieces_of
from services.gateway.facts.token_size import BYTES_IN_A_TOKEN
from shared.api.inference import Chunk

#: Tokens without text (of calls, and the ends of answers) that a backend without token ids may report.
_UNSEEN_TOKENS = 64


class Tally(msgspec.Struct, frozen=True, gc=False):
    #: As a worker has counted the prompt; 0 until it has.
    prompt: int = 0
    #: Tokens that came with their ids, and those of them with thoughts.
    ids: int = 0
    thoughts: int = 0
    #: Chunks with text, thoughts or calls.
    pieces: int = 0
    #: Of these, if they came without ids, and what to hold credits for: more tokens than most texts have.
    bytes: int = 0
    weight: int = 0


NOTHING = Tally()


def count(before: Tally, chunk: Chunk) -> Tally:
    pieces = before.pieces + bool(chunk.text or chunk.reasoning or chunk.tool_calls or chunk.call_parts)
    if ids := len(chunk.token_ids):
        thoughts = before.thoughts + (ids if chunk.reasoning else 0)
        return Tally(before.prompt, before.ids + ids, thoughts, pieces, before.bytes, before.weight)
    new = len("".join((chunk.text, chunk.reasoning, *[call.name + call.arguments for call in pieces_of(chunk)])).encode())
    return Tally(before.prompt, before.ids, before.thoughts, pieces, before.bytes + new, before.weight - (-new // BYTES_IN_A_TOKEN))


def billed(at: Tally, claimed: int, most: int) -> int:
    """Return the output tokens: those with ids, not what the worker claims. Backends without ids (HTTP APIs) leave only its claim; a token
    has a byte of text, apart from the unseen ones. Without a claim, a chunk has at least one token. ``most``: held for all answers."""
    return at.ids or min(claimed if claimed > 0 else at.pieces, at.bytes + _UNSEEN_TOKENS, most)
