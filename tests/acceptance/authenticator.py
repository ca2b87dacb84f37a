"""The app on a person's phone: RFC 6238 from its text, so that nothing of auth's own reckoning goes into the test."""

import base64
import hashlib
import hmac
import struct
import time

_PERIOD_SECONDS = 30


def code_of(secret: str, *, periods_ahead: int = 0) -> str:
    """The six digits that it shows now, or will after so many periods; ``secret`` is in Base32, with or without spaces."""
    key = base64.b32decode(secret.replace(" ", ""))
    counter = int(time.time()) // _PERIOD_SECONDS + periods_ahead
    digest = hmac.new(key, struct.pack(">Q", counter), hashlib.sha1).digest()
    offset = digest[-1] & 15
    (number,) = struct.unpack(">I", digest[offset : offset + 4])
    return f"{(number & 0x7FFFFFFF) % 1_000_000:06}"
