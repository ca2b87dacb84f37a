"""Stores the items of answers for an hour, so that a caller can refer to them instead of sending them again. Where a policy says
`stored_prompts: 24h`, it also stores conversations, so that a caller only sends what is new.

What is stored is its tenant's: any of its keys may refer to them. A change of the policies that apply to the tenant ends it.
"""

import asyncio
import hmac
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import repeat

from services.gateway.facts.bad_field import BadField
from services.gateway.facts.config_snapshot import ConfigSource
from services.gateway.idempotency.sealed_values import MAX_BYTES, SealedValues
from shared import errors
from shared.api import gateway
from shared.api.auth import Principal
from shared.api.generation import MAX_PROMPT_BYTES
from shared.api.method import Nothing
from shared.config_documents import StoredPrompts
from shared.protocol import request_memory
from shared.rpc import RpcCall, serves
from shared.stores.cache import Cache
from shared.types import TenantId

#: One hash tag, as ``cache_keys.PREFIX``.
PREFIX = "{gateway:items}:"
_KEEP_SECONDS, _KEEP_CONVERSATION_SECONDS = 3600.0, 24 * 3600.0
_MOMENT_SECONDS = 0.001
#: Of one tenant. The oldest ones go first.
_MAX_TENANT_BYTES = 32 * 1024 * 1024
#: Reading one takes 10 to 30 µs; a task of an agent has hundreds.
_MAX_FOUND = 2000
#: The request can't run without them, and a whole prompt takes a slow network longer than one answer.
_READ_SECONDS = 1.0
#: Read without a pause for other requests.
_AT_ONCE = 100
_SHOWN_CHARACTERS = 64
_WHY_NOT = "items are kept for an hour, unless the request says `store: false` or a policy says `store_items: false`"


class StoredItems:
    def __init__(self, cache: Cache, source: ConfigSource, *, secret: str, most_bytes: int) -> None:
        """``most_bytes``: over all tenants."""
        self._values = SealedValues(cache, PREFIX, secret=secret, most_bytes=most_bytes, what="stored items")
        self._secret = secret
        self._source = source

    def allows(self, caller: Principal) -> bool:
        """Raises ConfigUnreadable."""
        return self._source.config.policies.of(caller).store_items.value

    def allows_prompts(self, caller: Principal) -> bool:
        policy = self._source.config.policies.of(caller)
        return policy.store_items.value and policy.stored_prompts.value is StoredPrompts.DAY

    async def find(self, caller: Principal, ids: Sequence[str]) -> Mapping[str, bytes]:
        """Raises BadField, NotFound, ContextExceeded, Unavailable, and what ``HeldRequest.resize`` raises."""
        if len(ids) > _MAX_FOUND or len(set(ids)) < len(ids):
            raise BadField("input", f"must refer to at most {_MAX_FOUND} items, and to each of them once")
        names = self._names(caller, ids) if self.allows(caller) else ()
        values: Iterator[bytes | None] | None = repeat(None)
        if names:
            values = await self._values.find(caller.tenant_id, names, most_bytes=MAX_PROMPT_BYTES, seconds=_READ_SECONDS)
        if values is None:
            raise _cannot_read()
        found: dict[str, bytes] = {}
        size = 0
        for item_id, value in zip(ids, values, strict=False):
            if value is None:
                raise errors.NotFound(f"there is no stored item {item_id[:_SHOWN_CHARACTERS]!r}: {_WHY_NOT}", hint="send the item itself")
            found[item_id] = value
            if (size := size + len(value)) > MAX_PROMPT_BYTES:
                break
            if len(found) % _AT_ONCE == 0:
                await asyncio.sleep(0)
        if size > MAX_PROMPT_BYTES or len(found) < len(ids):
            raise errors.ContextExceeded.because(f"its stored items have more than {MAX_PROMPT_BYTES} bytes", hint="shorten it")
        _hold(size)
        return found

    async def find_conversation(self, caller: Principal, response: str) -> bytes | None:
        """Raises Unavailable, and what ``HeldRequest.resize`` raises."""
        values = await self._values.find(caller.tenant_id, self._names(caller, (response,)), seconds=_READ_SECONDS)
        if values is None:
            raise _cannot_read()
        # An empty one is deleted.
        found = next(values, None) or None
        _hold(len(found or b""))
        return found

    async def keep(self, caller: Principal, items: Mapping[str, bytes]) -> bool:
        """Return whether all of them are stored."""
        return self.allows(caller) and await self._keep(caller, items, _KEEP_SECONDS)

    async def keep_conversation(self, caller: Principal, response: str, conversation: bytes) -> bool:
        """Return whether it is stored."""
        return self.allows_prompts(caller) and await self._keep(caller, {response: conversation}, _KEEP_CONVERSATION_SECONDS)

    async def drop_conversation(self, caller: Principal, response: str) -> bool:
        """Return whether there was one. Raises Unavailable, and what ``HeldRequest.resize`` raises."""
        if not self.allows_prompts(caller) or await self.find_conversation(caller, response) is None:
            return False
        if not await self._keep(caller, {response: b""}, _MOMENT_SECONDS):
            raise errors.Unavailable("stored conversations can't be deleted right now", hint="retry", retry_after_seconds=1)
        return True

    async def _keep(self, caller: Principal, items: Mapping[str, bytes], seconds: float) -> bool:
        short = {item_id: item for item_id, item in items.items() if len(item) <= MAX_BYTES}
        values = dict(zip(self._names(caller, tuple(short)), short.values(), strict=True))
        tenant = caller.tenant_id
        is_kept = await self._values.keep(tenant, values, seconds=seconds, group=self._group(tenant), most_group_bytes=_MAX_TENANT_BYTES)
        return is_kept and len(short) == len(items)

    @serves(gateway.drop_stored_items)
    async def drop(self, request: gateway.DropStoredItems, _call: RpcCall) -> Nothing:
        """Only auth may call this, for a tenant that it erases. Raises Unavailable."""
        await self._values.drop(self._group(request.tenant_id))
        return Nothing()

    def _names(self, caller: Principal, ids: Iterable[str]) -> tuple[str, ...]:
        group, revision = self._group(caller.tenant_id), self._source.config.policies.revision_of(caller.tenant_id)
        return tuple(group + self._digest(f"{caller.tenant_id}:{revision}:{item_id}") for item_id in ids)

    def _group(self, tenant: TenantId) -> str:
        return f"{PREFIX}{self._digest(str(tenant))}:"

    def _digest(self, text: str) -> str:
        """Return a part of a key that doesn't tell what it stands for."""
        return hmac.digest(self._secret.encode(), f"item:{text}".encode(errors="replace"), "sha256").hex()


def _hold(size: int) -> None:
    if (held := request_memory.current.get()) is not None:
        held.resize(held.size + size)


def _cannot_read() -> errors.Unavailable:
    return errors.Unavailable("stored items can't be read right now", hint="retry, or send the items themselves", retry_after_seconds=1)
