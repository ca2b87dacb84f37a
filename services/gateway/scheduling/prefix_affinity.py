"""Which worker has read the beginning of a prompt lately, so that it need not read it again.  Pure.

The names of beginnings never leave the gateway, and each tenant has names of its own: nobody can find out by the time that an
answer takes what somebody else has asked.
"""

import hashlib
from collections import OrderedDict
from collections.abc import Mapping, Sequence

import msgspec

from shared.api.generation import ChatMessage, Tool
from shared.types import ModelName, NodeId

# The constants are those of LocalAI's prefix-cache routing (core/services/nodes/prefixcache/config.go): blocks of 256 bytes, at most
# 64 of them, an entry lives 5 minutes, less than 0.3 of the prompt is not worth it.
BLOCK_BYTES = 256
MAX_BLOCKS = 64
LIVES_SECONDS = 300.0
LEAST_SHARE = 0.3
#: Names kept: 1,000 prompts of the greatest length; about 300 bytes each.
MAX_NAMES = 64_000
#: Workers remembered for one beginning, so that one that everybody shares, such as a system prompt, stays small.
MAX_READERS = 8
_NAME_BYTES = 12


def beginnings(messages: Sequence[ChatMessage], salt: str, tools: Sequence[Tool] = ()) -> tuple[bytes, ...]:
    """Names of the prompt's beginnings, the shortest first, after every whole block; a prompt that is shorter has none.

    Where the prompt has more than MAX_BLOCKS, only every second, fourth, … is named. Each of those is named of a shorter prompt,
    too, so that a conversation finds its own last turn.
    """
    text = _rendered(messages, tools)
    blocks = len(text) // BLOCK_BYTES
    stride = 1
    while blocks // stride > MAX_BLOCKS:
        stride *= 2
    running = hashlib.blake2b(digest_size=_NAME_BYTES, key=salt.encode()[: hashlib.blake2b.MAX_KEY_SIZE])
    step, view, names = stride * BLOCK_BYTES, memoryview(text), []
    for start in range(0, blocks // stride * step, step):
        running.update(view[start : start + step])
        names.append(running.digest())
    return tuple(names)


def _rendered(messages: Sequence[ChatMessage], tools: Sequence[Tool]) -> bytes:
    """What a template is made from. No lengths stand before a text: a longer one of the same beginning must begin the same."""
    parts = [msgspec.msgpack.encode(tools)] if tools else []
    for message in messages:
        parts += [message.role.encode(), b"\0", message.content.encode(errors="surrogatepass"), b"\0"]
        if message.tool_calls:
            parts.append(msgspec.msgpack.encode(message.tool_calls))
    return b"".join(parts)


class PrefixAffinity:
    """Who has read what, and when."""

    def __init__(self) -> None:
        self._read: OrderedDict[tuple[ModelName, bytes], dict[NodeId, float]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._read)

    def read(self, model: ModelName, names: Sequence[bytes], node: NodeId, now: float) -> None:
        """The node reads a prompt with these beginnings."""
        for name in names:
            readers = self._read.setdefault((model, name), {})
            readers.pop(node, None)
            readers[node] = now
            if len(readers) > MAX_READERS:
                del readers[next(iter(readers))]
            self._read.move_to_end((model, name))
        while len(self._read) > MAX_NAMES:
            self._read.popitem(last=False)

    def shares(self, model: ModelName, names: Sequence[bytes], since: Mapping[NodeId, float], now: float) -> dict[NodeId, float]:
        """For each node of ``since`` that has read a beginning: which share of the prompt that is. What it read before it came has
        been forgotten by the process that it is now."""
        found: dict[NodeId, float] = {}
        for count in range(len(names), 0, -1):
            for node, read_at in self._read.get((model, names[count - 1]), {}).items():
                if node not in found and node in since and read_at >= since[node] and now - read_at <= LIVES_SECONDS:
                    found[node] = count / len(names)
            if len(found) == len(since):
                break
        return found
