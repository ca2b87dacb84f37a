"""Answers as they lie in stores: unreadable, and worthless anywhere but at their place.

The key of each tenant is derived from the gateway's secret, so what one tenant's request finds opens only if it is that tenant's.
"""

import hashlib
import hmac
import zlib

from nacl.exceptions import CryptoError
from nacl.secret import Aead

from shared.types import TenantId


def seal(plain: bytes, tenant: TenantId, place: str, secret: str, *, compression: int = 1) -> bytes:
    """``place`` is where it is going to lie; it opens nowhere else. ``compression``: as zlib's levels; 0 for none."""
    # Hundreds of chunks have the same shape: the default leaves a third of them.
    return bytes(_box(tenant, secret).encrypt(zlib.compress(plain, level=compression), place.encode()))


def unseal(sealed: bytes, tenant: TenantId, place: str, secret: str) -> bytes | None:
    """None for what is damaged, another's, from another place, or sealed with another secret."""
    try:
        return zlib.decompress(_box(tenant, secret).decrypt(sealed, place.encode()))
    except (CryptoError, ValueError):  # ValueError: too short to have a nonce
        return None


def _box(tenant: TenantId, secret: str) -> Aead:
    return Aead(hmac.new(secret.encode(), b"sealed:" + str(tenant).encode(), hashlib.sha256).digest())
