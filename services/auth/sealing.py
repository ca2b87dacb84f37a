"""Seals what has to be read again, like the seed of a second factor: AES-256-GCM under DATA_KEY. Pure but for the randomness.

A sealed value opens only for the purpose and the owner that it was sealed for: one that was copied into another row does not open
there. It names its key, so that a second one can be given while the first is taken out of use.

    1 byte: the form, 1 · 4 bytes: which key (the first of its SHA-256) · 12 bytes: nonce · the text and 16 bytes of tag
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
    """The 32 bytes of a setting. Raises BadSettings, without a word of what was given."""
    try:
        raw = base64.b64decode(
            text.strip() + "=" * (-len(text.strip()) % 4), altchars=b"-_" if set(text) & set("-_") else None, validate=True
        )
    except (binascii.Error, ValueError):
        raw = b""
    if len(raw) != _KEY_BYTES:
        raise errors.BadSettings(f"{name} is not 32 bytes in base64", hint="make one with `openssl rand -base64 32`")
    return raw


def derive(key: bytes, purpose: str) -> bytes:
    """A key of its own for another kind of work, like signing; nothing of DATA_KEY follows from it (RFC 5869)."""
    return HKDF(hashes.SHA256(), _KEY_BYTES, salt=None, info=b"aimesh/" + purpose.encode()).derive(key)


def key_id(key: bytes) -> str:
    """Which key it is; says nothing of what it is."""
    return hashlib.sha256(key).hexdigest()[: 2 * _ID_BYTES]


class DataSealer:
    """Seals with one key and opens with all that it was given."""

    def __init__(self, key: bytes, *former: bytes) -> None:
        self.key_id = key_id(key)
        self._ciphers = {key_id(each): AESGCM(each) for each in (*former, key)}

    @classmethod
    def of(cls, data_key: str, data_key_old: str | None = None) -> "DataSealer":
        """From the settings. Raises BadSettings."""
        former = () if data_key_old is None else (read_key(data_key_old, "DATA_KEY_OLD"),)
        return cls(read_key(data_key), *former)

    def seal(self, purpose: str, owner: object, plain: bytes) -> bytes:
        nonce = os.urandom(_NONCE_BYTES)
        cipher = self._ciphers[self.key_id]
        return _FORM + bytes.fromhex(self.key_id) + nonce + cipher.encrypt(nonce, plain, _bound_to(purpose, owner))

    def open(self, purpose: str, owner: object, sealed: bytes) -> bytes:
        """Raises Unavailable where the key is not here, and Internal for what was not sealed for this purpose and owner."""
        if len(sealed) < _HEAD_BYTES or not sealed.startswith(_FORM):
            raise _damaged()
        cipher = self._ciphers.get(key_id_of(sealed))
        if cipher is None:
            raise errors.Unavailable(
                "this was sealed with another DATA_KEY than the one that auth has", hint="give auth the former key as DATA_KEY_OLD"
            )
        try:
            return cipher.decrypt(sealed[_HEAD_BYTES - _NONCE_BYTES : _HEAD_BYTES], sealed[_HEAD_BYTES:], _bound_to(purpose, owner))
        except InvalidTag as error:
            raise _damaged() from error

    def is_outdated(self, sealed: bytes) -> bool:
        """With a former key: to be sealed anew at the next occasion."""
        return key_id_of(sealed) != self.key_id


def key_id_of(sealed: bytes) -> str:
    return sealed[len(_FORM) : len(_FORM) + _ID_BYTES].hex()


def _bound_to(purpose: str, owner: object) -> bytes:
    # With its length, so that no purpose and owner together read like two others.
    return b"aimesh/sealed/%d/" % len(purpose) + f"{purpose}/{owner}".encode()


def _damaged() -> errors.Internal:
    return errors.Internal("what is stored here was changed, or was sealed for something else", hint="restore it from a backup")
