"""Codes of an authenticator app: RFC 6238 with SHA-1, six digits and steps of 30 s, which every app supports. Pure.

Returns the step of a code instead of whether it is right, because each step may be used only once.
"""

import base64
import hashlib
import hmac
import os
from urllib.parse import quote

SEED_BYTES = 20
DIGITS = 6
STEP_SECONDS = 30
#: How many steps a phone's clock may be off.
_DRIFT_STEPS = 1


def new_seed() -> bytes:
    return os.urandom(SEED_BYTES)


def code_at(seed: bytes, step: int, digits: int = DIGITS) -> str:
    """RFC 4226 §5.3."""
    digest = hmac.digest(seed, step.to_bytes(8, "big"), hashlib.sha1)
    offset = digest[-1] & 0x0F
    number = int.from_bytes(digest[offset : offset + 4], "big") & 0x7FFF_FFFF
    return str(number % 10**digits).zfill(digits)


def step_at(now: float) -> int:
    return int(now // STEP_SECONDS)


def find_step(seed: bytes, code: str, now: float) -> int | None:
    """Return the step of ``code`` among those allowed now; None for a wrong code. Always compares with all of them."""
    typed = normal(code).encode()
    found = None
    for step in range(max(0, step_at(now) - _DRIFT_STEPS), step_at(now) + _DRIFT_STEPS + 1):
        if hmac.compare_digest(code_at(seed, step).encode(), typed):
            found = step
    return found


def normal(code: str) -> str:
    """Apps show `123 456`."""
    return code.replace(" ", "").strip()


def may_be(code: str) -> bool:
    """Return whether it has six digits; anything else can only be a recovery code."""
    digits = normal(code)
    return len(digits) == DIGITS and digits.isascii() and digits.isdecimal()


def secret_text(seed: bytes) -> str:
    """Return it in base32, to be typed."""
    return base64.b32encode(seed).decode().rstrip("=")


def uri(seed: bytes, username: str, issuer: str) -> str:
    """Return the content of the QR code, in the form of the Google Authenticator wiki."""
    label = f"{quote(issuer, safe='')}:{quote(username, safe='')}"
    return (
        f"otpauth://totp/{label}?secret={secret_text(seed)}&issuer={quote(issuer, safe='')}"
        f"&algorithm=SHA1&digits={DIGITS}&period={STEP_SECONDS}"
    )
