"""Remembers which workers recently processed the beginning of a prompt, so that another one with the same prefix reuses it. Pure.

Prefix hashes never leave the gateway and are salted per tenant, so response times reveal nothing about other tenants' prompts.
"""

import hashlib
from collections import OrderedDict
from collections.abc import Mapping, Sequence

import msgspec

from shared.api.generation import ChatMessage, Tool
from shared.types import ModelName, NodeId

# Constants from LocalAI's prefix-cache routing (core/services/nodes/prefixcache/config.go): 256-byte blocks, at most 64, entries live
# 5 minutes, and less than 0.3 of the prompt is not worth it.
BLOCK_BYTES = 256
MAX_BLOCKS = 64
LIVES_SECONDS = 300.0
LEAST_SHARE = 0.3
#: Prefixes kept: 1,000 prompts of maximum length, about 300 bytes each.
MAX_PREFIXES = 64_000
#: Workers remembered for one prefix, so that shared system prompts stay small.
MAX_READERS = 8
_HASH_BYTES = 12


def hash_prefixes(messages: Sequence[ChatMessage], salt: str, tools: Sequence[Tool] = ()) -> tuple[bytes, ...]:
    """Return the hashes of the prompt's prefixes, one for each whole block, shortest first; none for a shorter prompt.

    Above MAX_BLOCKS, only every second, fourth, … prefix is hashed. A shorter prompt hashes each of these, too, so a conversation
    matches its own last turn.
    """
    text = _rendered(messages, tools)
    blocks = len(text) // BLOCK_BYTES
    stride = 1
    while blocks // stride > MAX_BLOCKS:
        stride *= 2
    running = hashlib.blake2b(digest_size=_HASH_BYTES, key=salt.encode()[: hashlib.blake2b.MAX_KEY_SIZE])
    step, view, hashes = stride * BLOCK_BYTES, memoryview(text), []
    for start in range(0, blocks // stride * step, step):
        running.update(view[start : start + step])
        hashes.append(running.digest())
    return tuple(hashes)


def _rendered(messages: Sequence[ChatMessage], tools: Sequence[Tool]) -> bytes:
    """Serialize the prompt without length prefixes, so that an extended text starts with the same bytes."""
    parts = [msgspec.msgpack.encode(tools)] if tools else []
    for message in messages:
        parts += [message.role.encode(), b"\0", message.content.encode(errors="surrogatepass"), b"\0"]
        if message.tool_calls:
            parts.append(msgspec.msgpack.encode(message.tool_calls))
    return b"".join(parts)


class PrefixAffinity:
    """Records which worker processed which prefixes, and when."""

    def __init__(self) -> None:
        self._read: OrderedDict[tuple[ModelName, bytes], dict[NodeId, float]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._read)

    def record(self, model: ModelName, hashes: Sequence[bytes], node: NodeId, now: float) -> None:
        """Record that the node processes a prompt with these prefixes."""
        for prefix_hash in hashes:
            readers = self._read.setdefault((model, prefix_hash), {})
            readers.pop(node, None)
            readers[node] = now
            if len(readers) > MAX_READERS:
                del readers[next(iter(readers))]
            self._read.move_to_end((model, prefix_hash))
        while len(self._read) > MAX_PREFIXES:
            self._read.popitem(last=False)

    def shares(self, model: ModelName, hashes: Sequence[bytes], since: Mapping[NodeId, float], now: float) -> dict[NodeId, float]:
        """Return, for the nodes of ``since``, the share of the prompt that they recently processed. Entries from before a node's start
        don't count, because its cache is gone."""
        found: dict[NodeId, float] = {}
        for count in range(len(hashes), 0, -1):
            for node, read_at in self._read.get((model, hashes[count - 1]), {}).items():
                if node not in found and node in since and read_at >= since[node] and now - read_at <= LIVES_SECONDS:
                    found[node] = count / len(hashes)
            if len(found) == len(since):
                break
        return found
