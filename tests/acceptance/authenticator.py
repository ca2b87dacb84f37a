"""The authenticator app on a user's phone, implemented from RFC 6238 and independent of auth's code."""

import base64
import hashlib
import hmac
import struct
import time

_PERIOD_SECONDS = 30


def code_of(secret: str, *, periods_ahead: int = 0) -> str:
    """Return the six digits shown now, or after so many periods; ``secret`` is in Base32, with or without spaces."""
    key = base64.b32decode(secret.replace(" ", ""))
    counter = int(time.time()) // _PERIOD_SECONDS + periods_ahead
    digest = hmac.new(key, struct.pack(">Q", counter), hashlib.sha1).digest()
    offset = digest[-1] & 15
    (number,) = struct.unpack(">I", digest[offset : offset + 4])
    return f"{(number & 0x7FFFFFFF) % 1_000_000:06}"
