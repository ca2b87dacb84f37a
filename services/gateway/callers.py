"""Identifies callers by asking auth, caches the answers, and follows auth's stream of changes.

While our own connection to NATS is lost, a question that only auth can answer waits until it is back.
"""

import asyncio
import base64
import binascii
import hashlib
import re
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from math import inf
from weakref import WeakValueDictionary

import msgspec

from shared import errors
from shared.api import auth
from shared.api.auth import Change, Principal
from shared.identity import credentials
from shared.rpc import RpcClient
from shared.telemetry import logs
from shared.telemetry.instruments import AuthFailure
from shared.timing.backoff import Backoff
from shared.types import Credential, Permission, UserId

_ASK_SECONDS = 2.0
#: Reopen the stream every hour, so that it can't hang unnoticed.
_WATCH_SECONDS = 3600.0
_BACKOFF = Backoff(first_seconds=0.1, longest_seconds=2.0)
#: After our own connection is back, auth may need a moment, too.
_BACK_SECONDS = 3.0
_AGAIN_SECONDS = 0.1
#: Our access tokens have about 400 characters.
_MAX_TOKEN_CHARACTERS = 4096
_ACCESS_TOKEN = re.compile(r"([A-Za-z0-9_-]+)\.([A-Za-z0-9_-]+)\.([A-Za-z0-9_-]+)\Z")

_KEY_HINT = "create a key on the dashboard or with `aicli keys create`"
_PERSON_HINT = (
    "send X-Aimesh-User or X-OpenWebUI-User-Email with a verified address; Open WebUI does so with ENABLE_FORWARD_USER_INFO_HEADERS=true"
)
#: Auth can't be reached, or has just started and has no methods yet; any other error is its answer.
_CANNOT_ASK = (
    errors.NotReachable, errors.LinkLost, errors.DeadlineExceeded, errors.Draining, errors.Overloaded, errors.Unavailable,
    errors.UnknownMethod,
)  # fmt: skip

#: Of these, what our own connection may cause.
_UNREACHED = (errors.NotReachable, errors.LinkLost, errors.DeadlineExceeded)

#: Asks auth who the caller is.
Ask = Callable[[], Awaitable[Principal]]

_log = logs.get(part="callers")


class _TokenClaims(msgspec.Struct):
    #: Seconds since 1970.
    exp: float = inf


class Callers:
    """Identifies callers. Run ``watch`` as a task while it is used."""

    def __init__(
        self,
        rpc: RpcClient,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
        *,
        count_refusal: Callable[[AuthFailure], object] = lambda reason: None,
        can_ask: Callable[[], bool] = lambda: True,
        back_at: Callable[[], float] = lambda: -inf,
        wait_seconds: float = 30.0,
        most_waiting: int = 1000,
    ) -> None:
        """``count_refusal`` is called for credentials refused without asking auth. ``can_ask``: whether an auth can be reached now.
        ``back_at``: when our own connection to NATS came back; infinity while it is lost. So many questions wait for it, each at most
        ``wait_seconds``."""
        self._can_ask = can_ask
        self._rpc = rpc
        self._back_at = back_at
        self._wait_seconds = wait_seconds
        self._most_waiting = most_waiting
        self._waiting = 0
        #: Called with each of auth's changes, when no older answer is in the cache any more.
        self.on_change: Callable[[Change], object] = lambda change: None
        self._count_refusal = count_refusal
        self._clock = clock
        self._wall_clock = wall_clock
        self._cache = CallerCache()
        # One call to auth at a time for each credential.
        self._locks: WeakValueDictionary[bytes, asyncio.Lock] = WeakValueDictionary()

    async def identify(self, credential: Credential | None) -> auth.Principal:
        """Return the caller. Raises NotAuthenticated; a malformed credential never leaves this process."""
        if credential is None:
            self._count_refusal("missing")
            raise errors.NotAuthenticated(
                "no credential: send `Authorization: Bearer <API key or access token>` or `X-API-Key`", hint=_KEY_HINT
            )
        digest = hashlib.sha256(credential.encode()).digest()
        if principal := self._cache.find(digest, self._clock()):
            return principal
        try:
            _check_form(credential)
        except errors.NotAuthenticated:
            self._count_refusal("malformed")
            raise
        return await self._ask_once(digest, partial(self._ask_auth, credential), partial(self._remaining_seconds, credential))

    async def identify_owner(self, owner: auth.IdentifyOwner) -> auth.Principal:
        """Return who ordered a job, with the rights of now. Raises NotAuthenticated if there are none any more."""
        digest = hashlib.sha256(msgspec.msgpack.encode(owner)).digest()
        ask = partial(self._rpc.call, auth.identify_owner, owner, deadline_seconds=_ASK_SECONDS)
        return self._cache.find(digest, self._clock()) or await self._ask_once(digest, ask, self._key_seconds)

    async def identify_person(self, key: auth.Principal, address: str) -> auth.Principal:
        """Return whom a key with the scope `users:name` names, or its own principal for an address without an account, or no address.
        Raises PersonRefused, also for these if the key does not serve them."""
        if address and key.key_id is not None:
            asked = auth.IdentifyPerson(key.key_id, address)
            digest = hashlib.sha256(msgspec.msgpack.encode(asked)).digest()
            ask = partial(self._rpc.call, auth.identify_person, asked, deadline_seconds=_ASK_SECONDS)
            found = self._cache.find(digest, self._clock()) or await self._ask_once(digest, ask, self._key_seconds)
            if found.named_by is not None:
                return found
        if Permission.SERVE_STRANGERS not in (key.scopes or ()):
            raise errors.PersonRefused("this key serves people with an account here, and the request names none of them", hint=_PERSON_HINT)
        return key

    async def _ask_once(self, digest: bytes, ask: Ask, remaining: Callable[[Principal], float]) -> auth.Principal:
        lock = self._locks.get(digest) or self._locks.setdefault(digest, asyncio.Lock())
        if self._waiting >= self._most_waiting and self._is_lost():
            raise errors.Overloaded(
                f"this gateway has lost its connection to NATS, and {self._waiting} requests already wait until it can ask auth",
                hint="retry later",
                retry_after_seconds=1,
            )
        gives_up_at = self._clock() + self._wait_seconds
        self._waiting += 1
        try:
            async with lock:
                return self._cache.find(digest, self._clock()) or await self._ask(digest, ask, remaining, gives_up_at)
        finally:
            self._waiting -= 1

    def _is_lost(self) -> bool:
        """Return whether our own connection is lost, or so new that auth may not be back yet."""
        return self._clock() - self._back_at() < _BACK_SECONDS

    async def watch(self) -> None:
        """Follow auth's changes forever; reopen the stream with backoff."""
        failures = 0
        while True:
            try:
                request = auth.WatchChanges(since=self._cache.sequence)
                async with self._rpc.stream(auth.watch_changes, request, deadline_seconds=_WATCH_SECONDS) as changes:
                    async for change in changes:
                        # The first event confirms that auth is listening; earlier changes could be missed.
                        self._cache.watch_began()
                        failures = 0
                        self._cache.apply(change)
                        self.on_change(change)
            except errors.AimeshError as error:
                _log.info("auth's change stream is closed", reason=error.message)
            finally:
                self._cache.watch_ended()
            failures += 1
            await asyncio.sleep(_BACKOFF.pause(failures))

    async def _ask(self, digest: bytes, ask: Ask, remaining: Callable[[Principal], float], gives_up_at: float) -> auth.Principal:
        if not self._can_ask() and (stale := self._cache.find(digest, self._clock(), is_auth_away=True)):
            return stale  # a question would first wait for auth
        while True:
            changes_before = self._cache.changes
            try:
                principal = await ask()
            except _CANNOT_ASK as error:
                if stale := self._cache.find(digest, self._clock(), is_auth_away=True):
                    return stale
                if isinstance(error, errors.UnknownMethod):
                    raise errors.Unavailable("auth is still starting", hint="retry soon", retry_after_seconds=1) from error
                if not (isinstance(error, _UNREACHED) and self._is_lost()) or self._clock() + _AGAIN_SECONDS >= gives_up_at:
                    raise
            except errors.NotAuthenticated:
                self._cache.forget(digest)
                raise
            else:
                now = self._clock()
                self._cache.remember(digest, principal, now=now, ends_at=now + remaining(principal), changes_before=changes_before)
                return principal
            # A question waits for auth itself.
            await asyncio.sleep(_AGAIN_SECONDS)

    async def _ask_auth(self, credential: Credential) -> auth.Principal:
        if _is_key(credential):
            return await self._rpc.call(auth.validate_api_key, auth.ValidateApiKey(credential), deadline_seconds=_ASK_SECONDS)
        return await self._rpc.call(auth.identify, auth.Identify(credential), deadline_seconds=_ASK_SECONDS)

    def _key_seconds(self, principal: auth.Principal) -> float:
        return inf if principal.expires_at is None else principal.expires_at - self._wall_clock()

    def _remaining_seconds(self, credential: Credential, principal: auth.Principal) -> float:
        if _is_key(credential):
            return self._key_seconds(principal)
        payload = credential.split(".")[1]
        try:
            claims = msgspec.json.decode(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)), type=_TokenClaims)
        except (msgspec.MsgspecError, binascii.Error):
            return 0
        return claims.exp - self._wall_clock()


def _is_key(credential: Credential) -> bool:
    return credential.startswith("aip_")


def _check_form(credential: Credential) -> None:
    if _is_key(credential):
        if not credentials.looks_like_api_key(credential):
            raise errors.NotAuthenticated("this is not a valid API key: its checksum or length is wrong", hint="copy the whole key again")
    elif len(credential) > _MAX_TOKEN_CHARACTERS or not _ACCESS_TOKEN.match(credential):
        raise errors.NotAuthenticated("the credential is neither an API key (aip_live_…) nor an access token", hint=_KEY_HINT)


WATCHED_SECONDS = 60.0
UNWATCHED_SECONDS = 5.0
#: If auth can't be reached, an answer of up to five minutes ago is better than no service.
STALE_SECONDS = 300.0
#: The least recently used entries are dropped first.
MAX_ENTRIES = 10_000


@dataclass(frozen=True, slots=True)
class _CachedCaller:
    principal: Principal
    checked_at: float
    #: Expiry of the credential; infinite for a key without one.
    ends_at: float


class CallerCache:
    """Caches callers by the digest of their credential."""

    def __init__(self) -> None:
        self._entries: OrderedDict[bytes, _CachedCaller] = OrderedDict()
        self._watched = False
        #: Counts changes; answers to questions asked before a change aren't cached after it.
        self.changes = 0
        #: The last change seen, to resume the stream; 0 before the first.
        self.sequence = 0

    def find(self, digest: bytes, now: float, *, is_auth_away: bool = False) -> Principal | None:
        """Return a caller that needs no new check, or can't have one."""
        entry = self._entries.get(digest)
        if entry is None:
            return None
        lifetime_seconds = self._lifetime_seconds(entry.principal, is_auth_away=is_auth_away)
        if now >= min(entry.checked_at + lifetime_seconds, entry.ends_at):
            return None
        self._entries.move_to_end(digest)
        return entry.principal

    def _lifetime_seconds(self, principal: Principal, *, is_auth_away: bool) -> float:
        if is_auth_away:
            return STALE_SECONDS
        # Also what is known of strangers behind such a key, and nobody announces who registers or verifies an address.
        is_brief = Permission.NAME_USERS in (principal.scopes or ())
        return WATCHED_SECONDS if self._watched and not is_brief else UNWATCHED_SECONDS

    def remember(self, digest: bytes, principal: Principal, *, now: float, ends_at: float, changes_before: int) -> None:
        if changes_before != self.changes:
            return
        self._entries[digest] = _CachedCaller(principal, now, ends_at)
        self._entries.move_to_end(digest)
        if len(self._entries) > MAX_ENTRIES:
            self._entries.popitem(last=False)

    def forget(self, digest: bytes) -> None:
        self._entries.pop(digest, None)

    def watch_began(self) -> None:
        """Mark the stream as live. Before the first stream, any entry may be outdated."""
        if self.sequence == 0:
            self._forget_user(None)
        self._watched = True

    def watch_ended(self) -> None:
        self._watched = False

    def apply(self, change: Change) -> None:
        self.sequence = max(self.sequence, change.sequence)
        self._forget_user(change.user_id)

    def _forget_user(self, user_id: UserId | None) -> None:
        self.changes += 1
        if user_id is None:
            self._entries.clear()
            return
        for digest in [digest for digest, entry in self._entries.items() if entry.principal.depends_on(user_id)]:
            del self._entries[digest]
