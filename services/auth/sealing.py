"""Encrypt what must be read again, like the seed of a second factor: AES-256-GCM under DATA_KEY. Pure but for the randomness.

A sealed value opens only for its purpose and owner, so it is useless when copied into another row. It names its key, so the key can be
replaced while the old one still opens old values.

    1 byte: format, 1 · 4 bytes: key id (start of its SHA-256) · 12 bytes: nonce · ciphertext and 16 bytes of tag
"""

import base64
import binascii
import hashlib
import os

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from shared import errors

_KEY_BYTES = 32
_FORM = b"\x01"
_ID_BYTES = 4
_NONCE_BYTES = 12
_HEAD_BYTES = len(_FORM) + _ID_BYTES + _NONCE_BYTES


def read_key(text: str, name: str = "DATA_KEY") -> bytes:
    """Decode the 32 bytes of a setting. Raises BadSettings, which doesn't quote it."""
    try:
        raw = base64.b64decode(
            text.strip() + "=" * (-len(text.strip()) % 4), altchars=b"-_" if set(text) & set("-_") else None, validate=True
        )
    except (binascii.Error, ValueError):
        raw = b""
    if len(raw) != _KEY_BYTES:
        raise errors.BadSettings(f"{name} is not 32 bytes in base64", hint="create one with `openssl rand -base64 32`")
    return raw


def read_keys(data_key: str, data_key_old: str | None) -> tuple[bytes, ...]:
    """Return the current key, and then the former one if there is one. Raises BadSettings."""
    former = () if data_key_old is None else (read_key(data_key_old, "DATA_KEY_OLD"),)
    return (read_key(data_key), *former)


def derive(key: bytes, purpose: str) -> bytes:
    """Derive an independent key for another purpose, like signing (RFC 5869). It reveals nothing about DATA_KEY."""
    return HKDF(hashes.SHA256(), _KEY_BYTES, salt=None, info=b"aimesh/" + purpose.encode()).derive(key)


def key_id(key: bytes) -> str:
    """Identify a key without revealing it."""
    return hashlib.sha256(key).hexdigest()[: 2 * _ID_BYTES]


class DataSealer:
    """Seal with the current key; open with the current one and former ones."""

    def __init__(self, key: bytes, *former: bytes) -> None:
        self.key_id = key_id(key)
        self._ciphers = {key_id(each): AESGCM(each) for each in (*former, key)}

    @classmethod
    def of(cls, data_key: str, data_key_old: str | None = None) -> "DataSealer":
        """Build it from the settings. Raises BadSettings."""
        return cls(*read_keys(data_key, data_key_old))

    def seal(self, purpose: str, owner: object, plain: bytes) -> bytes:
        nonce = os.urandom(_NONCE_BYTES)
        cipher = self._ciphers[self.key_id]
        return _FORM + bytes.fromhex(self.key_id) + nonce + cipher.encrypt(nonce, plain, _bound_to(purpose, owner))

    def open(self, purpose: str, owner: object, sealed: bytes) -> bytes:
        """Raises Unavailable if the key is missing, and Internal if the value wasn't sealed for this purpose and owner."""
        if len(sealed) < _HEAD_BYTES or not sealed.startswith(_FORM):
            raise _damaged()
        cipher = self._ciphers.get(key_id_of(sealed))
        if cipher is None:
            raise errors.Unavailable(
                "this was encrypted with another DATA_KEY than auth has", hint="give auth the former key as DATA_KEY_OLD"
            )
        try:
            return cipher.decrypt(sealed[_HEAD_BYTES - _NONCE_BYTES : _HEAD_BYTES], sealed[_HEAD_BYTES:], _bound_to(purpose, owner))
        except InvalidTag as error:
            raise _damaged() from error

    def is_outdated(self, sealed: bytes) -> bool:
        """Return whether it was sealed with a former key and should be sealed again."""
        return key_id_of(sealed) != self.key_id


def key_id_of(sealed: bytes) -> str:
    return sealed[len(_FORM) : len(_FORM) + _ID_BYTES].hex()


def _bound_to(purpose: str, owner: object) -> bytes:
    # Includes the length, so that no two pairs of purpose and owner are encoded the same.
    return b"aimesh/sealed/%d/" % len(purpose) + f"{purpose}/{owner}".encode()


def _damaged() -> errors.Internal:
    return errors.Internal("the stored value was changed, or encrypted for something else", hint="restore it from a backup")
