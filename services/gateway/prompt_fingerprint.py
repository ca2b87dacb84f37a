"""What stands for a prompt in request_logs: never the prompt, and not a bare hash, since a short prompt can be guessed."""

import hashlib
import hmac
from collections.abc import Sequence

import msgspec

from shared.api.generation import ChatMessage
from shared.types import TenantId


def fingerprint(content: Sequence[ChatMessage] | Sequence[str], secret: str) -> str:
    """64 hex digits, the same for the same conversation under the same secret."""
    return hmac.new(secret.encode(), msgspec.msgpack.encode(content), hashlib.sha256).hexdigest()


def salt(tenant: TenantId, secret: str) -> str:
    """Says whose prompts may share what a worker has computed of them, and no more: workers never learn who the users are."""
    return hmac.new(secret.encode(), b"salt:" + str(tenant).encode(), hashlib.sha256).hexdigest()[:32]
