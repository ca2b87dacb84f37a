"""Encrypts what is stored, bound to its tenant and storage key.

Each tenant's encryption key is derived from the gateway's secret.
"""

import hashlib
import hmac
import zlib

from nacl.exceptions import CryptoError
from nacl.secret import Aead

from shared.types import TenantId


def seal(plain: bytes | bytearray, tenant: TenantId, storage_key: str, secret: str, *, compression: int = 1) -> bytes:
    """Encrypt for this storage key; it can't be decrypted under another. ``compression``: a zlib level, 0 for none."""
    # Answers have hundreds of similar chunks: the default level reduces them to a third.
    return bytes(_box(tenant, secret).encrypt(zlib.compress(plain, level=compression), storage_key.encode()))


def unseal(sealed: bytes, tenant: TenantId, storage_key: str, secret: str) -> bytes | None:
    """Return None for data that is damaged, or encrypted for another tenant, storage key or secret."""
    try:
        return zlib.decompress(_box(tenant, secret).decrypt(sealed, storage_key.encode()))
    except (CryptoError, ValueError):  # ValueError: too short for a nonce
        return None


def _box(tenant: TenantId, secret: str) -> Aead:
    return Aead(hmac.new(secret.encode(), b"sealed:" + str(tenant).encode(), hashlib.sha256).digest())
