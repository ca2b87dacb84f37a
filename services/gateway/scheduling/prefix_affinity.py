"""Remembers which workers recently processed the beginning of a prompt, so that another one with the same prefix reuses it. Pure.

Prefix hashes never leave the gateway and are salted per tenant, so response times reveal nothing about other tenants' prompts.
"""

from collections import OrderedDict
from collections.abc import Mapping, Sequence

from shared.types import ModelName, NodeId

# Constants from LocalAI's prefix-cache routing (core/services/nodes/prefixcache/config.go): entries live 5 minutes, and less than 0.3 of
# the prompt is not worth it.
LIVES_SECONDS = 300.0
MIN_SHARE = 0.3
#: Prefixes kept: 1,000 prompts of maximum length, about 300 bytes each.
MAX_PREFIXES = 64_000
#: Workers remembered for one prefix, so that shared system prompts stay small.
MAX_READERS = 8


class PrefixAffinity:
    """Records which worker processed which prefixes, and when."""

    def __init__(self) -> None:
        self._read: OrderedDict[tuple[ModelName, bytes], dict[NodeId, float]] = OrderedDict()

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
