"""Anchors: what the head of an audit chain was at some time, signed, and kept where those who can write the database cannot.

A chain alone does not show that its last rows are gone, nor that all of it was made anew; an anchor does. The key is derived from a
secret of auth, so whoever has that can sign, too: the file belongs on a disk that such a person cannot write.
"""

import binascii
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime

import msgspec

from shared.access import audit_chain
from shared.access.audit_chain import ChainHead, Checkpoint
from shared.api.method import Body
from shared.identity import node_keys
from shared.types import MeshName, NodeId

_PURPOSE = "audit-anchor"


class Anchor(Body, frozen=True, kw_only=True, omit_defaults=False):
    """One line of the file, in JSON."""

    mesh: MeshName
    chain: str
    sequence: int
    #: Of that row, in hex.
    hash: str
    #: How many rows the chain had; more than ``sequence`` would mean that some have gone.
    count: int
    at: datetime
    #: The public key, an nkey; ask for it by another way than the file comes by.
    key: NodeId
    #: In hex.
    signature: str


@dataclass(frozen=True, slots=True, kw_only=True)
class AnchorFinding:
    """An anchor that proves nothing."""

    chain: str
    sequence: int
    why: str


@dataclass(frozen=True, slots=True)
class Anchors:
    """Those that are good, and what is wrong with the others."""

    good: tuple[Anchor, ...]
    findings: tuple[AnchorFinding, ...]

    def chains(self) -> frozenset[str]:
        return frozenset(anchor.chain for anchor in self.good) | {finding.chain for finding in self.findings}

    def checkpoints(self, chain: str) -> tuple[Checkpoint, ...]:
        return tuple(_checkpoint(anchor) for anchor in self.good if anchor.chain == chain)

    def finding(self, chain: str) -> AnchorFinding | None:
        """The first, by its row."""
        return min((found for found in self.findings if found.chain == chain), key=lambda found: found.sequence, default=None)


def signing_key(seed: bytes) -> node_keys.NodeKey:
    """Of 32 secret bytes that are for this purpose alone."""
    return node_keys.NodeKey(node_keys.seed_of(seed))


def sign(key: node_keys.NodeKey, mesh: MeshName, chain: str, head: ChainHead, at: datetime) -> Anchor:
    bare = Anchor(
        mesh=mesh, chain=chain, sequence=head.sequence, hash=head.hash.hex(), count=head.sequence, at=at, key=key.id, signature=""
    )
    return msgspec.structs.replace(bare, signature=key.sign(_PURPOSE, _text(bare)).hex())


def check(anchors: Iterable[Anchor], keys: Collection[NodeId]) -> Anchors:
    """``keys``: one of them must have signed each."""
    good: dict[str, Anchor] = {}
    findings: list[AnchorFinding] = []
    for anchor in anchors:
        if anchor.key in keys and _is_signed(anchor):
            good[anchor.signature] = anchor
        else:
            why = f"the anchor of {_moment(anchor.at)} is forged: no key of this mesh signed it so"
            findings.append(AnchorFinding(chain=anchor.chain, sequence=anchor.sequence, why=why))
    return Anchors(tuple(good.values()), tuple(findings))


def line(anchor: Anchor) -> bytes:
    return msgspec.json.encode(anchor) + b"\n"


def read_lines(lines: Iterable[bytes]) -> tuple[list[Anchor], list[int]]:
    """The anchors of a file, and the numbers of the lines that are none."""
    anchors: list[Anchor] = []
    unreadable: list[int] = []
    for number, text in enumerate(lines, start=1):
        if not text.strip():
            continue
        try:
            anchors.append(msgspec.json.decode(text, type=Anchor))
        except (msgspec.DecodeError, UnicodeDecodeError):
            unreadable.append(number)
    return anchors, unreadable


def keys_of(anchors: Sequence[Anchor]) -> tuple[NodeId, ...]:
    """Who claims to have signed; more than one means that somebody has a key of their own."""
    return tuple(dict.fromkeys(anchor.key for anchor in anchors))


def _is_signed(anchor: Anchor) -> bool:
    try:
        return node_keys.verify(anchor.key, _PURPOSE, _text(anchor), binascii.unhexlify(anchor.signature))
    except (ValueError, OverflowError):
        return False


def _text(anchor: Anchor) -> bytes:
    return msgspec.msgpack.encode(
        (anchor.mesh, anchor.chain, anchor.sequence, anchor.hash, anchor.count, audit_chain.microseconds(anchor.at), anchor.key)
    )


def _checkpoint(anchor: Anchor) -> Checkpoint:
    return Checkpoint(sequence=anchor.sequence, hash=bytes.fromhex(anchor.hash), source=f"the anchor of {_moment(anchor.at)}")


def _moment(at: datetime) -> str:
    return at.strftime("%Y-%m-%d %H:%M:%S")
