"""A node's key: who it is, and its signatures.

Every signature of ours covers ``0xFF "aimesh/" purpose "/1" 0x00`` and then the text, because NATS makes a client sign a
nonce that the server chose: what was signed for one purpose must never verify for another.
"""

import base64
import binascii
import secrets
from pathlib import Path

import nkeys
from nacl.exceptions import CryptoError
from nacl.signing import VerifyKey

from shared import errors
from shared.types import NodeId


class NodeKey:
    """The Ed25519 key of one node; its public half, an nkey, is the node's id."""

    def __init__(self, seed: bytes) -> None:
        """``seed`` is an nkey seed, ``SU…``; raises BadSettings if it is not."""
        try:
            self._pair = nkeys.from_seed(bytearray(seed))
            self.id = NodeId(self._pair.public_key.decode())
        except (nkeys.NkeysError, binascii.Error, ValueError) as error:
            raise errors.BadSettings("the node key is not an nkey seed (SU…)", hint="aicli stack init makes new ones") from error
        self.seed = seed

    def sign(self, purpose: str, text: bytes) -> bytes:
        return bytes(self._pair.sign(_covered(purpose, text)))

    def sign_bare(self, nonce: bytes) -> bytes:
        """For the login at NATS alone, which wants its nonce signed without a purpose."""
        return bytes(self._pair.sign(nonce))


def new_seed() -> bytes:
    """A fresh user seed from the system's CSPRNG."""
    return bytes(nkeys.encode_seed(secrets.token_bytes(32), nkeys.PREFIX_BYTE_USER))


def load(path: Path) -> NodeKey:
    """The key in a file; raises BadSettings if it cannot be read or others can."""
    try:
        if path.stat().st_mode & 0o077:
            raise errors.BadSettings(f"{path} can be read by others", hint=f"chmod 600 {path}")
        return NodeKey(path.read_bytes().strip())
    except OSError as error:
        raise errors.BadSettings(f"cannot read the node key {path}: {error.strerror}", hint="aicli stack init makes it") from error


def verify(node: NodeId, purpose: str, text: bytes, signature: bytes) -> bool:
    """Whether ``node`` signed this text for this purpose; False for anything that is not a node id, too."""
    try:
        prefix, key, checksum = _parts(node)
        if prefix != nkeys.PREFIX_BYTE_USER or nkeys.crc16(bytearray(bytes([prefix]) + key)) != checksum:
            return False
        VerifyKey(key).verify(_covered(purpose, text), signature)
    except (CryptoError, binascii.Error, ValueError):
        return False
    return True


def _parts(node: NodeId) -> tuple[int, bytes, int]:
    """An nkey is base32 of: prefix byte, 32 bytes of key, CRC-16 of both, little-endian."""
    raw = base64.b32decode(node)
    if len(raw) != 35:
        raise ValueError("not 56 characters of base32")
    return raw[0], raw[1:33], int.from_bytes(raw[33:], "little")


def _covered(purpose: str, text: bytes) -> bytes:
    return b"\xffaimesh/" + purpose.encode() + b"/1\x00" + text
