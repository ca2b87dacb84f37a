"""Blocks of files that the sidecar copies from and for peers: the calls, and the events of each file. See protocol.md.

Sets of blocks are the bits of an int.
"""

import asyncio
import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any, Final, Protocol

from pyhyperswarm.swarm import SwarmFollower

BLOCK_BYTES: Final = 1 << 20
_DIGEST_BYTES: Final = 32
#: As the sidecar does: a kill repeats few blocks.
_SAVE_BLOCKS: Final = 8


@dataclass(frozen=True, slots=True)
class CopyFile:
    """A file to copy."""

    #: SHA-256. Peers are asked for it.
    digest: bytes
    size: int
    #: The SHA-256 of each block, one after the other.
    blocks: Path
    #: The file as far as it has been copied.
    partial: Path

    @property
    def bitmap(self) -> Path:
        """Return where the sidecar keeps which blocks are right and on the disk."""
        return self.partial.with_name(self.partial.name + ".bitmap")

    @property
    def count(self) -> int:
        return -(-self.size // BLOCK_BYTES)

    def length(self, block: int) -> int:
        return min(BLOCK_BYTES, self.size - block * BLOCK_BYTES)

    def write(self, block: int, body: bytes) -> bool:
        """Write a block that is not from a peer, and return True, if it is right. Blocks; raises OSError."""
        with self.blocks.open("rb") as blocks, self.partial.open("r+b") as partial:
            blocks.seek(block * _DIGEST_BYTES)
            if hashlib.sha256(body).digest() != blocks.read(_DIGEST_BYTES):
                return False
            partial.seek(block * BLOCK_BYTES)
            partial.write(body)
            return True

    def prepare(self) -> int:
        """Create what is missing, and return the blocks that are there. Blocks. Raises OSError; ValueError for a wrong list."""
        if self.blocks.stat().st_size != self.count * _DIGEST_BYTES:
            raise ValueError(f"{self.blocks} does not have the digests of {self.count} blocks")
        length = (self.count + 7) // 8
        for path in (self.partial, self.bitmap):
            os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
        saved = self.bitmap.read_bytes()
        if self.partial.stat().st_size == self.size and len(saved) == length:
            return int.from_bytes(saved, "little") & ((1 << self.count) - 1)
        self.bitmap.write_bytes(bytes(length))
        os.truncate(self.partial, self.size)
        return 0

    def save(self, blocks: int) -> None:
        """Make these blocks durable, and then the bitmap that claims them. Blocks; raises OSError."""
        with self.partial.open("rb") as partial, self.bitmap.open("r+b") as bitmap:
            os.fdatasync(partial.fileno())
            bitmap.write(blocks.to_bytes((self.count + 7) // 8, "little"))
            bitmap.flush()
            os.fdatasync(bitmap.fileno())


@dataclass(frozen=True, slots=True)
class WholeFile:
    """A file that peers may read."""

    path: Path
    size: int


class Ending(Enum):
    #: It is watched again when it is back.
    GONE = "gone"
    #: It does not let us read, or not any longer: ask for another grant.
    DENIED = "denied"
    #: It sent nothing for a while, as a busy machine does.
    SILENT = "silent"
    #: It sent something wrong.
    FAULTY = "faulty"


_ENDINGS: Final = {"silent": Ending.SILENT, "bad": Ending.FAULTY}


class CopyListener(Protocol):
    """Hears what becomes of one file. Called on the event loop: must not wait or raise."""

    def peer_has(self, key: bytes, blocks: int, queue: int) -> None:
        """A peer has these blocks, or these more; so many requests wait for its uplink."""
        ...

    def peer_refused(self, key: bytes, block: int) -> None:
        """A peer is busy: ask others, or later."""
        ...

    def peer_ended(self, key: bytes, ending: Ending, why: str) -> None: ...

    def block_stored(self, key: bytes, block: int) -> None: ...

    def copy_stopped(self, why: str) -> None:
        """The sidecar cannot write. With an empty ``why``, it has died or come, and the file must be opened again."""
        ...


class Calls(Protocol):
    """A running sidecar."""

    def send_command(self, method: str, parameters: dict[str, object]) -> None: ...

    async def call(self, method: str, parameters: dict[str, object]) -> Any: ...


@dataclass(slots=True)
class _Lonely:
    """A file that we copy without a sidecar, so only from elsewhere."""

    file: CopyFile
    blocks: int
    unsaved: int = 0


class BlockCopies(SwarmFollower):
    """For all lives of a swarm's sidecar. Without one, files have no peers."""

    def __init__(self) -> None:
        #: Called when a peer wants to read a file, with its key, the digest and its grant. Answer with ``allow`` or ``deny``, now or later.
        self.on_grant: Callable[[bytes, bytes, bytes], None] = lambda key, digest, grant: self.deny(key, digest)
        self._sidecar: Calls | None = None
        self._listeners: dict[bytes, CopyListener] = {}
        self._lonely: dict[bytes, _Lonely] = {}
        #: Key of a peer -> digest -> grant.
        self._watched: dict[bytes, dict[bytes, bytes]] = {}
        self._rate: float | None = None

    async def open(self, file: CopyFile, blocks: int, listener: CopyListener) -> None:
        """Begin to copy a file of which these blocks are there, see ``CopyFile.prepare``. Raises SwarmError."""
        if self._sidecar is None:
            self._listeners[file.digest], self._lonely[file.digest] = listener, _Lonely(file, blocks)
            return
        places = {"path": str(file.partial), "blocks": str(file.blocks), "bitmap": str(file.bitmap), "size": file.size}
        bits = blocks.to_bytes((file.count + 7) // 8, "little").hex()
        self._listeners[file.digest] = listener
        await self._sidecar.call("copyOpen", {"digest": file.digest.hex(), **places, "bits": bits})

    async def close(self, file: CopyFile, *, is_whole: bool) -> None:
        """Stop. Returns when what was stored is on the disk. Peers may go on to read a whole file, even renamed. Raises SwarmError."""
        self._listeners.pop(file.digest, None)
        for key in [key for key, grants in self._watched.items() if file.digest in grants]:
            self.drop(file.digest, key)
        if (lonely := self._lonely.pop(file.digest, None)) is not None:
            await asyncio.to_thread(file.save, lonely.blocks)
        elif self._sidecar is not None:
            await self._sidecar.call("copyClose", {"digest": file.digest.hex(), "isWhole": is_whole})

    def watch(self, digest: bytes, key: bytes, grant: bytes) -> None:
        """Connect to a peer, and stay connected, to read a file from it."""
        self._watched.setdefault(key, {})[digest] = grant
        self._send("joinPeer", key=key.hex())
        self._send("copyWatch", digest=digest.hex(), key=key.hex(), grant=grant.hex())

    def ask(self, digest: bytes, key: bytes, block: int) -> None:
        self._send("copyAsk", digest=digest.hex(), key=key.hex(), index=block)

    def cancel(self, digest: bytes, key: bytes, block: int) -> None:
        self._send("copyCancel", digest=digest.hex(), key=key.hex(), index=block)

    def drop(self, digest: bytes, key: bytes) -> None:
        """Read no more of this file from the peer."""
        self._forget(digest, key)
        self._send("copyDrop", digest=digest.hex(), key=key.hex())

    async def add(self, digest: bytes, block: int) -> None:
        """Count a block that the caller has checked and written into the file. Raises OSError."""
        if (lonely := self._lonely.get(digest)) is None:
            self._send("copyHave", digest=digest.hex(), index=block)
            return
        lonely.blocks |= 1 << block
        lonely.unsaved += 1
        if lonely.unsaved == _SAVE_BLOCKS:
            lonely.unsaved = 0
            await asyncio.to_thread(lonely.file.save, lonely.blocks)

    def set_rate(self, bytes_per_second: float | None) -> None:
        """Limit what all peers together read; None for no limit, 0 for a pause."""
        self._rate = bytes_per_second
        self._send("copyRate", rate=bytes_per_second)

    @property
    def is_running(self) -> bool:
        """Return whether there is a sidecar."""
        return self._sidecar is not None

    def has_peers(self, digest: bytes) -> bool:
        """Return whether peers can read what there is of a file that we are copying, and we theirs."""
        return digest in self._listeners and digest not in self._lonely

    def allow(self, key: bytes, digest: bytes, whole: WholeFile | None) -> None:
        """Let a peer read a whole file, or what there is of one that we are copying."""
        places = {} if whole is None else {"path": str(whole.path), "size": whole.size}
        self._send("copyAllow", key=key.hex(), digest=digest.hex(), **places)

    def deny(self, key: bytes, digest: bytes) -> None:
        """Let a peer read a file no longer, or not at all."""
        self._send("copyDeny", key=key.hex(), digest=digest.hex())

    # --- for the swarm ------------------------------------------------------------------------------------------------

    def started(self, sidecar: Calls) -> None:
        self._sidecar = sidecar
        self._send("copyRate", rate=self._rate)
        for digest in list(self._lonely):
            self._listeners[digest].copy_stopped("")

    def lost(self) -> None:
        self._sidecar = None
        self._watched.clear()
        for digest in self._listeners.keys() - self._lonely.keys():
            self._listeners[digest].copy_stopped("")

    def opened(self, key: bytes) -> None:
        for digest, grant in self._watched.get(key, {}).items():
            self._send("copyWatch", digest=digest.hex(), key=key.hex(), grant=grant.hex())

    def closed(self, key: bytes) -> None:
        for digest in self._watched.get(key, ()):
            self._listeners[digest].peer_ended(key, Ending.GONE, "the connection was closed")

    def receive(self, event: dict[str, Any]) -> None:
        digest, key = bytes.fromhex(event["digest"]), bytes.fromhex(event.get("key") or "")
        if event["kind"] == "grant":
            self.on_grant(key, digest, bytes.fromhex(event["grant"]))
            return
        listener = self._listeners.get(digest)
        if listener is None:
            return
        match event["kind"]:
            case "have" if event["bits"]:
                listener.peer_has(key, int.from_bytes(bytes.fromhex(event["bits"]), "little"), 0)
            case "have":
                self._forget(digest, key)
                listener.peer_ended(key, Ending.DENIED, "does not let us read")
            case "news":
                listener.peer_has(key, sum(1 << block for block in set(event["blocks"])), event["queue"])
            case "no":
                listener.peer_refused(key, event["index"])
            case "silent" | "bad" as kind:
                listener.peer_ended(key, _ENDINGS[kind], event.get("why", kind))
            case "block":
                listener.block_stored(key, event["index"])
            case "failed":
                listener.copy_stopped(event["text"])

    def _forget(self, digest: bytes, key: bytes) -> None:
        """The sidecar ends a connection that only copying needed."""
        grants = self._watched.get(key, {})
        grants.pop(digest, None)
        if not grants and self._watched.pop(key, None) is not None:
            self._send("leavePeer", key=key.hex())

    def _send(self, method: str, **parameters: object) -> None:
        if self._sidecar is not None:
            self._sidecar.send_command(method, parameters)
