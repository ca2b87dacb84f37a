"""The keys of nodes and of the mesh CA, and their signatures.

Every signature covers ``0xFF "aimesh/" purpose "/1" 0x00`` before the text, because NATS makes clients sign a nonce of the server's choice:
a signature for one purpose must never verify for another.
"""

import base64
import binascii
import secrets
from pathlib import Path

import nkeys
from nacl.exceptions import CryptoError
from nacl.signing import VerifyKey

from shared import errors
from shared.identity import private_file
from shared.types import AuthorityId, NodeId


class _SigningKey:
    """An Ed25519 key from an nkey seed."""

    def __init__(self, seed: bytes, kind: str, refusal: errors.BadSettings) -> None:
        try:
            self._pair = nkeys.from_seed(bytearray(seed))
            self._public = self._pair.public_key.decode()
            if not self._public.startswith(kind):
                raise ValueError("a seed of another kind")
            #: Hyperswarm derives the same key from these 32 bytes.
            self.raw_seed = bytes(_raw_seed(seed))
        except (nkeys.NkeysError, binascii.Error, ValueError) as error:
            raise refusal from error

    def sign(self, purpose: str, text: bytes) -> bytes:
        return bytes(self._pair.sign(_covered(purpose, text)))

    def sign_bare(self, text: bytes) -> bytes:
        """Only for the login and the JWTs of NATS, which must be signed without a purpose."""
        return bytes(self._pair.sign(text))


class NodeKey(_SigningKey):
    """The key of one node. Its public half is the node's id."""

    def __init__(self, seed: bytes) -> None:
        """``seed`` is an nkey seed, ``SU…``. Raises BadSettings."""
        super().__init__(
            seed, "U", errors.BadSettings("the node key is not an nkey seed (SU…)", hint="create new ones with `aicli stack init`")
        )
        self.id = NodeId(self._public)
        self.seed = seed

    @property
    def raw(self) -> bytes:
        """Return the 32 bytes of the public key, as Noise proves them."""
        return raw_of(self.id)


class Authority(_SigningKey):
    """The key of the mesh CA: an nkey of the account kind, ``SA…``, so that no node's key can be used as one."""

    def __init__(self, seed: bytes) -> None:
        """Raises BadSettings if ``seed`` is not such an nkey seed."""
        super().__init__(
            seed, "A", errors.BadSettings("the mesh CA key is not an nkey seed (SA…)", hint="create one with `aicli stack init`")
        )
        self.id = AuthorityId(self._public)


def new_seed() -> bytes:
    """Return a user seed from the system's CSPRNG."""
    return seed_of(secrets.token_bytes(32))


def seed_of(raw: bytes) -> bytes:
    """Return the nkey seed ``SU…`` of 32 raw bytes."""
    return bytes(nkeys.encode_seed(raw, nkeys.PREFIX_BYTE_USER))


def new_authority_seed() -> bytes:
    """Return a seed for a mesh CA from the system's CSPRNG."""
    return bytes(nkeys.encode_seed(secrets.token_bytes(32), nkeys.PREFIX_BYTE_ACCOUNT))


def load(path: Path) -> NodeKey:
    """Raises BadSettings if the file cannot be read, or others can read it."""
    return NodeKey(_read_key(path, "node key"))


def load_authority(path: Path) -> Authority:
    """Raises BadSettings if the file cannot be read, or others can read it."""
    return Authority(_read_key(path, "mesh CA key"))


def read_private(path: Path, *, setting: str = "", most_bytes: int = -1) -> bytes:
    """Return the content of a private file. Blocks; raises BadSettings if other users may read the file, and OSError.
    ``setting`` names it in the message."""
    if private_file.is_exposed(path):
        raise errors.BadSettings(f"{setting and f'{setting}: '}{path} can be read by others", hint=f"chmod 600 {path}")
    with path.open("rb") as file:
        return file.read(most_bytes)


def _read_key(path: Path, what: str) -> bytes:
    try:
        return read_private(path).strip()
    except OSError as error:
        raise errors.BadSettings(f"cannot read the {what} {path}: {error.strerror}", hint="create it with `aicli stack init`") from error


def verify(node: NodeId, purpose: str, text: bytes, signature: bytes) -> bool:
    """Return whether ``node`` signed this text for this purpose; False also for anything but a node id."""
    return _verify(node, nkeys.PREFIX_BYTE_USER, _covered(purpose, text), signature)


def verify_bare(node: NodeId, text: bytes, signature: bytes) -> bool:
    """Like ``verify``, for a NATS login, whose nonce is signed without a purpose."""
    return _verify(node, nkeys.PREFIX_BYTE_USER, text, signature)


def verify_authority(authority: AuthorityId, purpose: str, text: bytes, signature: bytes) -> bool:
    """Like ``verify``, for the key of a mesh CA."""
    return _verify(authority, nkeys.PREFIX_BYTE_ACCOUNT, _covered(purpose, text), signature)


def raw_of(node: NodeId | AuthorityId) -> bytes:
    """Return the 32 bytes of a public key. Raises ValueError."""
    prefix, key, checksum = _parts(node)
    if prefix not in (nkeys.PREFIX_BYTE_USER, nkeys.PREFIX_BYTE_ACCOUNT) or not _is_right(prefix, key, checksum):
        raise ValueError("not the public key of a node or of a mesh CA")
    return key


def raw_of_hex(text: str) -> bytes:
    """Parse a public key of 64 hexadecimal digits, as in settings. Raises ValueError."""
    raw = bytes.fromhex(text)
    if len(text) != 64 or len(raw) != 32:  # fromhex passes over spaces
        raise ValueError("a public key is 64 hexadecimal digits")
    return raw


def node_of(raw: bytes) -> NodeId:
    return NodeId(_encode(nkeys.PREFIX_BYTE_USER, raw))


def authority_of(raw: bytes) -> AuthorityId:
    return AuthorityId(_encode(nkeys.PREFIX_BYTE_ACCOUNT, raw))


def _encode(prefix: int, raw: bytes) -> str:
    if len(raw) != 32:
        raise ValueError(f"a public key has 32 bytes, not {len(raw)}")
    body = bytes([prefix]) + raw
    return base64.b32encode(body + nkeys.crc16(bytearray(body)).to_bytes(2, "little")).decode().rstrip("=")


def _verify(key_id: NodeId | AuthorityId, kind: int, covered: bytes, signature: bytes) -> bool:
    try:
        prefix, key, checksum = _parts(key_id)
        if prefix != kind or not _is_right(prefix, key, checksum):
            return False
        VerifyKey(key).verify(covered, signature)
    except (CryptoError, binascii.Error, ValueError):
        return False
    return True


def _is_right(prefix: int, key: bytes, checksum: int) -> bool:
    return bool(nkeys.crc16(bytearray(bytes([prefix]) + key)) == checksum)


def _parts(key_id: NodeId | AuthorityId) -> tuple[int, bytes, int]:
    """An nkey is base32 of: prefix byte, 32 bytes of key, CRC-16 of both, little-endian."""
    raw = base64.b32decode(key_id)
    if len(raw) != 35:
        raise ValueError("not 56 characters of base32")
    return raw[0], raw[1:33], int.from_bytes(raw[33:], "little")


def _raw_seed(seed: bytes) -> bytes:
    """A seed is base32 of: two prefix bytes, the 32 bytes, CRC-16, which nkeys has checked."""
    padded = seed + b"=" * (-len(seed) % 8)
    return base64.b32decode(padded)[2:34]


def _covered(purpose: str, text: bytes) -> bytes:
    return b"\xffaimesh/" + purpose.encode() + b"/1\x00" + text
