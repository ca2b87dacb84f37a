"""A line of the recovery log: its hash, its signature, and the check of a whole file. Pure.

PostgreSQL computes the hash when a trigger adds the line (migrations 0015 of auth and 0025 of the gateway), and this module verifies it:
both must hash the same bytes.
"""

import hashlib
from collections import OrderedDict
from collections.abc import Collection, Iterable
from dataclasses import dataclass

import msgspec

from shared import audit_chain
from shared.api.method import Body
from shared.identity import node_keys
from shared.types import MeshName, Moment, NodeId

_PURPOSE = "recovery-log"
#: Lines that were written twice, because an earlier attempt failed halfway, are recognized among so many; a batch is smaller.
_REMEMBERED = 4096
#: So many signatures are verified, the newest ones: each takes 65 µs, and one covers all lines before it.
_VERIFIED = 10_000


class RecoveryLine(Body, frozen=True, kw_only=True, omit_defaults=False):
    """One line of the file, in JSON."""

    number: int
    at: Moment
    kind: str
    subject: str
    #: A JSON object, with the exact bytes that were hashed.
    details: str
    previous_hash: str
    hash: str
    #: The public key that signed it, an nkey.
    key: NodeId = NodeId("")
    signature: str = ""


@dataclass(frozen=True, slots=True)
class LogEnd:
    """The last line of the log."""

    number: int
    hash: str


START = LogEnd(0, bytes(32).hex())


class DamagedLine(Exception):
    """The file was changed, or a part of it is missing."""

    def __init__(self, line: int, why: str) -> None:
        super().__init__(why)
        #: Counted from 1, as editors do.
        self.line = line
        self.why = why


@dataclass(frozen=True, slots=True)
class CheckedLog:
    """The verified content of a file."""

    end: LogEnd
    #: The lines behind ``after``.
    newer: tuple[RecoveryLine, ...]
    #: The hash of the line ``after``; None if the file ends before it.
    hash_at: str | None
    #: Lines that a crash cut off. What they said is written again behind them, or was never confirmed.
    cut_off: tuple[int, ...]


def hash_of(line: RecoveryLine) -> str:
    text = "\n".join((str(line.number), str(audit_chain.microseconds(line.at)), line.kind, line.subject, line.details))
    return hashlib.sha256(bytes.fromhex(line.previous_hash) + text.encode()).hexdigest()


def sign(line: RecoveryLine, key: node_keys.NodeKey, mesh: MeshName) -> RecoveryLine:
    """The hash covers the line and all lines before it."""
    return msgspec.structs.replace(line, key=key.id, signature=key.sign(_PURPOSE, _signed_text(mesh, line)).hex())


def encode(line: RecoveryLine) -> bytes:
    return msgspec.json.encode(line) + b"\n"


def check(texts: Iterable[bytes], *, after: int, keys: Collection[NodeId], mesh: MeshName) -> CheckedLog:
    """Verify a file's lines. Raises DamagedLine.

    Hashes are verified from the first line on, and signatures behind ``after``: the caller has the hash of that line from another source,
    and a hash covers all lines before it.
    """
    verifier, text = _LogVerifier(after, keys, mesh), b""
    for count, text in enumerate(texts, start=1):
        if text.strip():
            verifier.take(text, count)
    return verifier.result(is_cut_off=not text.endswith(b"\n"))


class _LogVerifier:
    def __init__(self, after: int, keys: Collection[NodeId], mesh: MeshName) -> None:
        self._after = after
        self._keys = keys
        self._mesh = mesh
        self._end = START
        self._hash_at = START.hash if after == 0 else None
        self._newer: list[tuple[RecoveryLine, int]] = []
        self._cut_off: list[int] = []
        #: By number.
        self._recent: OrderedDict[int, str] = OrderedDict()
        #: Unreadable lines, until the next one shows whether anything is missing: a full disk cuts off one at each attempt.
        self._unreadable: list[int] = []

    def take(self, text: bytes, count: int) -> None:
        line = _decode(text)
        if line is None:
            self._unreadable.append(count)
            return
        if self._unreadable and line.number > self._end.number + 1:
            raise DamagedLine(self._unreadable[0], "the line cannot be read")
        _check_hash(line, count)
        if self._recent.get(line.number) != line.hash:
            self._follow(line, count)
        self._cut_off += self._unreadable
        self._unreadable.clear()

    def result(self, *, is_cut_off: bool) -> CheckedLog:
        # At the end, only a line without its newline can be the rest of a crash.
        if self._unreadable and not is_cut_off:
            raise DamagedLine(self._unreadable[0], "the line cannot be read")
        for line, count in self._newer[-_VERIFIED:]:
            _check_signature(line, count, self._keys, self._mesh)
        return CheckedLog(self._end, tuple(line for line, _ in self._newer), self._hash_at, (*self._cut_off, *self._unreadable))

    def _follow(self, line: RecoveryLine, count: int) -> None:
        if line.number != self._end.number + 1:
            raise DamagedLine(count, f"number {self._end.number + 1} is missing: number {line.number} is in its place")
        if line.previous_hash != self._end.hash:
            raise DamagedLine(count, "it does not follow the line before it: one of them was changed")
        if line.number > self._after:
            self._newer.append((line, count))
        self._end = LogEnd(line.number, line.hash)
        if line.number == self._after:
            self._hash_at = line.hash
        self._recent[line.number] = line.hash
        if len(self._recent) > _REMEMBERED:
            self._recent.popitem(last=False)


def _decode(text: bytes) -> RecoveryLine | None:
    try:
        return msgspec.json.decode(text, type=RecoveryLine)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None


def _check_hash(line: RecoveryLine, count: int) -> None:
    try:
        is_right = hash_of(line) == line.hash
    except (ValueError, OverflowError):  # no hex digits, no valid text, or no time of ours
        is_right = False
    if not is_right:
        raise DamagedLine(count, "its hash does not match: the line was changed")


def _check_signature(line: RecoveryLine, count: int, keys: Collection[NodeId], mesh: MeshName) -> None:
    if line.key not in keys:
        raise DamagedLine(count, "none of this mesh's keys signed it")
    try:
        is_right = node_keys.verify(line.key, _PURPOSE, _signed_text(mesh, line), bytes.fromhex(line.signature))
    except ValueError:
        is_right = False
    if not is_right:
        raise DamagedLine(count, "its signature is wrong")


def _signed_text(mesh: MeshName, line: RecoveryLine) -> bytes:
    return msgspec.msgpack.encode((mesh, line.hash))
