"""Reads errors in answers of our HTTP API, in its own form and in OpenAI's. Pure."""

import msgspec

from shared import errors


def read(status: int, body: bytes) -> errors.AimeshError:
    """Return the error of an answer with a status of 400 or more."""
    try:
        found = msgspec.json.decode(body, type=dict[str, dict[str, object]])["error"]
        code = str(found.get("aimesh_code") or found["code"])
        return errors.from_problem(errors.Problem(code, str(found["message"]), str(found.get("hint") or "")))
    except (msgspec.DecodeError, UnicodeDecodeError, KeyError):
        # A proxy is there.
        return errors.Unavailable(f"it answered with status {status}") if status >= 500 else errors.ProtocolViolation(f"status {status}")
