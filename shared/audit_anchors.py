"""Signs the heads of audit chains ("anchors") and checks them. Anchors are stored where nobody with database access can write.

A chain alone does not show that its last rows were deleted, or that the whole chain was rewritten; an anchor does. The signing key is
derived from one of auth's secrets, and anyone who has that secret can sign too: keep the file on a disk that they cannot write.
"""

import binascii
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime

import msgspec

from shared import audit_chain
from shared.api.method import Body
from shared.audit_chain import ChainHead, Checkpoint
from shared.identity import node_keys
from shared.types import MeshName, Moment, NodeId

_PURPOSE = "audit-anchor"


class Anchor(Body, frozen=True, kw_only=True, omit_defaults=False):
    """One line of the anchor file, in JSON."""

    mesh: MeshName
    chain: str
    sequence: int
    #: The hash of that row, in hex.
    hash: str
    #: The chain's row count. More than ``sequence`` would mean that rows are missing.
    count: int
    at: Moment
    #: The public key, an nkey. Get it through another channel than the file.
    key: NodeId
    signature: str


@dataclass(frozen=True, slots=True, kw_only=True)
class AnchorFinding:
    """An anchor that could not be verified."""

    chain: str
    sequence: int
    why: str


@dataclass(frozen=True, slots=True)
class Anchors:
    good: tuple[Anchor, ...]
    findings: tuple[AnchorFinding, ...]

    def chains(self) -> frozenset[str]:
        return frozenset(anchor.chain for anchor in self.good) | {finding.chain for finding in self.findings}

    def checkpoints(self, chain: str) -> tuple[Checkpoint, ...]:
        return tuple(_checkpoint(anchor) for anchor in self.good if anchor.chain == chain)

    def finding(self, chain: str) -> AnchorFinding | None:
        """Return the finding with the lowest row number."""
        return min((found for found in self.findings if found.chain == chain), key=lambda found: found.sequence, default=None)


def signing_key(seed: bytes) -> node_keys.NodeKey:
    """Return the key for 32 secret bytes that are used for nothing else."""
    return node_keys.NodeKey(node_keys.seed_of(seed))


@dataclass(frozen=True, slots=True)
class AnchorKeys:
    """The key that signs, and former ones."""

    current: node_keys.NodeKey
    former: tuple[node_keys.NodeKey, ...] = ()

    @classmethod
    def of(cls, seed: bytes, *former: bytes) -> "AnchorKeys":
        """Each of 32 secret bytes, derived for this purpose only."""
        return cls(signing_key(seed), tuple(map(signing_key, former)))

    @property
    def ids(self) -> frozenset[NodeId]:
        return frozenset(key.id for key in (self.current, *self.former))


def sign(key: node_keys.NodeKey, mesh: MeshName, chain: str, head: ChainHead, at: datetime) -> Anchor:
    bare = Anchor(
        mesh=mesh, chain=chain, sequence=head.sequence, hash=head.hash.hex(), count=head.sequence, at=at, key=key.id, signature=""
    )
    return msgspec.structs.replace(bare, signature=key.sign(_PURPOSE, _text(bare)).hex())


def check(anchors: Iterable[Anchor], keys: Collection[NodeId]) -> Anchors:
    """Verify each anchor's signature against ``keys``."""
    good: dict[str, Anchor] = {}
    findings: list[AnchorFinding] = []
    for anchor in anchors:
        if anchor.key in keys and _is_signed(anchor):
            good[anchor.signature] = anchor
        else:
            why = f"the anchor of {_moment(anchor.at)} is forged: none of this mesh's keys signed it"
            findings.append(AnchorFinding(chain=anchor.chain, sequence=anchor.sequence, why=why))
    return Anchors(tuple(good.values()), tuple(findings))


def line(anchor: Anchor) -> bytes:
    return msgspec.json.encode(anchor) + b"\n"


def read_lines(lines: Iterable[bytes]) -> tuple[list[Anchor], list[int]]:
    """Return the anchors of a file and the numbers of its unreadable lines."""
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
    """Return the keys that claim to have signed. More than one means that someone signed with a foreign key."""
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
