"""Sessions and one-time login links, in Valkey under hashes of their tokens, so a copy of Valkey opens nothing.

Access tokens contain the session's id, so they end with it. Every decision is one Lua script, so concurrent replicas and callers agree.
"""

import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import Enum
from pathlib import Path
from typing import Any

import msgspec

from services.auth import api_keys
from services.auth.sessions.tokens import SessionToken
from shared.api import accounts, auth
from shared.api.auth import SessionKind, Step
from shared.stores.cache import Cache
from shared.types import Credential, TenantId, UserId

#: Long enough for a command to open a browser.
LINK_SECONDS = 60
#: For a login that lacks a step: long enough to find the phone and install an app.
HALFWAY_SECONDS = 600
#: How long a program may repeat a refresh whose answer was lost.
GRACE_SECONDS = 10
#: Per user; the oldest end. Incomplete ones have their own limit, so knowing the password alone ends no other session.
MAX_OPEN, MAX_HALFWAY = 100, 10
#: Valid login links per user; the oldest end.
MAX_LINKS = 10
#: How often a use is recorded: the idle time counts from the last one.
_NOTE_SECONDS = 60.0
_NOTES_IN_AN_IDLE_TIME = 10

_LINK_PREFIX = "aip_link_"
#: How the keys of all sessions begin.
_KEYS_BEGIN = "auth:"
_MAX_ADDRESS, _MAX_AGENT = 60, 200

_SCRIPTS = ("open", "find", "resume", "refresh", "replace", "confirm", "end", "list", "link_add", "link_find", "device")


_UNKNOWN_CLIENT = auth.ClientFacts()


class SessionOver(Enum):
    """Why a token opens no session."""

    ENDED = "ended"
    #: A browser's token where a program's is expected, or vice versa.
    OTHER_KIND = "other kind"


@dataclass(frozen=True, slots=True)
class ClosedSession:
    id: str
    user_id: UserId


class StoredSession(msgspec.Struct, frozen=True, kw_only=True):
    """The fields read here; session_records.lua lists all."""

    id: str
    user_id: UserId
    kind: SessionKind
    #: Seconds since 1970, like all times here.
    opened_at: float
    last_used_at: float
    #: When a password or a code was last entered; 0 for never, as with a login link.
    confirmed_at: float
    step: Step
    has_factor: bool
    client: auth.ClientFacts
    team_id: TenantId | None = None
    #: The id of a browser that has logged in to this account (`KnownBrowsers`), or empty.
    browser: str = ""

    @property
    def tenant_id(self) -> TenantId:
        """Return the organization that the session acts for, or else the user."""
        return TenantId(self.user_id) if self.team_id is None else self.team_id

    def shown(self, own_id: str | None) -> accounts.OpenSession:
        return accounts.OpenSession(
            id=self.id,
            kind=self.kind,
            opened_at=datetime.fromtimestamp(self.opened_at, UTC),
            last_used_at=datetime.fromtimestamp(self.last_used_at, UTC),
            client=self.client,
            is_this=self.id == own_id,
        )


@dataclass(frozen=True, slots=True)
class OpenedSession:
    """A session with its token, which is stored nowhere."""

    token: str
    session: StoredSession

    def answer(self, user: auth.User, access_token: Credential, seconds: int, step: Step) -> auth.LoginSession:
        return auth.LoginSession(access_token, seconds, self.token, user, step=step, team_id=self.session.team_id)


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredLogin:
    """The initial values of a session."""

    user_id: UserId
    kind: SessionKind = SessionKind.PROGRAM
    step: Step = Step.DONE
    has_factor: bool = False
    #: None for now, because a password or a code was just entered.
    confirmed_at: float | None = None
    client: auth.ClientFacts = _UNKNOWN_CLIENT
    team_id: TenantId | None = None
    browser: str = ""


class StoredLoginLink(msgspec.Struct, frozen=True, kw_only=True):
    """The user that a login link logs in, and what it ends with: the session or the key that created it, and the password."""

    user_id: UserId
    password_version: str
    #: None for a link that a key created.
    session_id: str | None = None
    #: None for a link that a session created.
    key_hash: str | None = None
    #: A program's is an approved login of a device, whose code is the token.
    kind: SessionKind = SessionKind.BROWSER


class SessionStore:
    """Every method may raise Unavailable."""

    def __init__(
        self,
        cache: Cache,
        *,
        idle_seconds: float,
        longest_seconds: float,
        program_idle_seconds: float = 30 * 24 * 3600,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """``idle_seconds`` and ``longest_seconds`` apply to browsers; a program's session lasts as long as it is used."""
        self._cache = cache
        self._idle_seconds = {SessionKind.BROWSER: idle_seconds, SessionKind.PROGRAM: program_idle_seconds}
        self._longest_seconds = longest_seconds
        self._clock = clock
        here = Path(__file__).parent
        records = (here / "session_records.lua").read_text(encoding="utf-8")
        for name in _SCRIPTS:
            cache.script(_script(name), records + (here / f"{_script(name)}.lua").read_text(encoding="utf-8"))

    async def open(self, login: StoredLogin) -> OpenedSession:
        opened = await self._open(login, "")
        assert opened is not None  # only a link can refuse
        return opened

    async def open_by_link(self, link: str, login: StoredLogin) -> OpenedSession | None:
        """Use up a link of this user. Return None if it was used or has ended."""
        return await self._open(login, api_keys.hash_token(link))

    async def _open(self, login: StoredLogin, link_hash: str) -> OpenedSession | None:
        now, token = self._clock(), SessionToken.new()
        client = auth.ClientFacts(_printable(login.client.address, _MAX_ADDRESS), _printable(login.client.agent, _MAX_AGENT))
        session = StoredSession(
            id=_new_id(),
            user_id=login.user_id,
            kind=login.kind,
            opened_at=now,
            last_used_at=now,
            confirmed_at=now if login.confirmed_at is None else login.confirmed_at,
            step=login.step,
            has_factor=login.has_factor,
            client=client,
            team_id=login.team_id,
            browser=login.browser,
        )
        fields = _written(session) | self._step_fields(login.kind, login.step, now) | _token_fields(token)
        if not await self._run("open", now, self._idle_ms(login.kind), _most(login.step), session.id, link_hash, *_flat(fields)):
            return None
        return OpenedSession(token.text, session)

    async def find(self, session_id: str) -> StoredSession | None:
        """Find an open session by id, without extending it."""
        return _found(await self._run("find", self._clock(), session_id, ""))

    async def find_by_token(self, text: str) -> StoredSession | None:
        """Find the session of a token, even a used one. Proves nothing and changes nothing."""
        token = SessionToken.read(text)
        return None if token is None else _found(await self._run("find", self._clock(), "", token.family_hash))

    async def resume(self, text: str) -> OpenedSession | SessionOver:
        """Extend a browser's session; its token stays the same."""
        token = SessionToken.read(text)
        if token is None:
            return SessionOver.ENDED
        idle = self._idle_seconds[SessionKind.BROWSER]
        note = min(_NOTE_SECONDS, idle / _NOTES_IN_AN_IDLE_TIME)
        reply = await self._run("resume", self._clock(), _milliseconds(idle), token.family_hash, token.hash, note)
        if reply is None or reply[0] == b"kind":
            return SessionOver.ENDED if reply is None else SessionOver.OTHER_KIND
        return OpenedSession(text, _session(*_read(reply[1:])))

    async def refresh(self, text: str) -> OpenedSession | SessionOver | ClosedSession:
        """Extend a program's session and replace its token.

        Repeating it within ten seconds returns the same answer: an answer may be lost, and two calls may overlap. If the token was used
        before that, two callers have it, so the session ends.
        """
        token = SessionToken.read(text)
        if token is None:
            return SessionOver.ENDED
        nonce = secrets.token_hex(32)
        successor = token.successor(nonce)
        idle_ms = self._idle_ms(SessionKind.PROGRAM)
        reply = await self._run("refresh", self._clock(), idle_ms, token.family_hash, token.hash, successor.hash, nonce, GRACE_SECONDS)
        if reply is None or reply[0] == b"kind":
            return SessionOver.ENDED if reply is None else SessionOver.OTHER_KIND
        session_id, fields = _read(reply[1:])
        session = _session(session_id, fields)
        if reply[0] == b"reused":
            return ClosedSession(session.id, session.user_id)
        return OpenedSession(token.successor(fields.get("nonce", "")).text, session)

    async def complete(self, session: StoredSession, browser: str = "") -> OpenedSession | None:
        """Continue after the missing second factor was entered. Returns None like ``_replace``."""
        now = self._clock()
        fields = self._step_fields(session.kind, Step.DONE, now) | _factor_fields(now, has_factor=True) | {"browser": browser}
        return await self._replace(session, now, Step.DONE, fields)

    async def switch_team(self, session: StoredSession, team_id: TenantId | None) -> OpenedSession | None:
        """Act for an organization, or for oneself. Returns None like ``_replace``."""
        return await self._replace(session, self._clock(), session.step, {"team_id": _text(team_id)})

    async def _replace(self, session: StoredSession, now: float, step: Step, fields: Mapping[str, str]) -> OpenedSession | None:
        """Replace id and token, so the former ones become invalid. Return None if it has ended, or a concurrent call replaced it."""
        token, session_id = SessionToken.new(), _new_id()
        changed = _flat({**fields, **_token_fields(token)})
        flat = await self._run("replace", now, self._idle_ms(session.kind), _most(step), session.id, session_id, *changed)
        return None if flat is None else OpenedSession(token.text, _session(session_id, _fields(flat)))

    async def confirm(self, session: StoredSession, *, has_factor: bool) -> bool:
        """Record that a password or a code was entered. Return False if the session has ended."""
        now = self._clock()
        fields = _factor_fields(now, has_factor=has_factor)
        return bool(await self._run("confirm", now, session.id, *_flat(fields)))

    async def list_of(self, user_id: UserId) -> tuple[StoredSession, ...]:
        """List complete open sessions, newest first; at most 100."""
        rows = await self._run("list", self._clock(), str(user_id))
        return tuple(_session(*_read(row)) for row in rows or ())

    async def end_by_token(self, text: str) -> ClosedSession | None:
        """End a session by any of its tokens. Return None if there was none."""
        token = SessionToken.read(text)
        if token is None:
            return None
        ended = _ended(await self._run("end", self._clock(), "family", token.family_hash))
        return ended[0] if ended else None

    async def end(self, user_id: UserId, session_id: str) -> bool:
        """Return False if the user has no session with this id."""
        return bool(await self._run("end", self._clock(), "id", str(user_id), session_id))

    async def end_all(self, user_id: UserId, but: str | None = None) -> int:
        """End all sessions of this user, except the one with the id ``but``, and all login links; return how many sessions ended.
        Idempotent."""
        return len(_ended(await self._run("end", self._clock(), "user", str(user_id), but or "")))

    async def create_link(self, link: StoredLoginLink) -> str:
        """Return a token that opens one session within a minute."""
        token = _LINK_PREFIX + api_keys.random_text()
        facts = str(link.user_id), api_keys.hash_token(token), msgspec.json.encode(link)
        await self._run("link_add", self._clock(), _milliseconds(LINK_SECONDS), MAX_LINKS, *facts)
        return token

    async def find_link(self, token: str) -> StoredLoginLink | None:
        """Return None if it is unknown, used or expired. Does not use it up."""
        found = await self._cache.run(_script("link_find"), (_KEYS_BEGIN,), (repr(self._clock()), api_keys.hash_token(token)))
        return None if found is None else msgspec.json.decode(found, type=StoredLoginLink)

    async def end_links(self, user_id: UserId) -> None:
        await self._run("end", self._clock(), "links", str(user_id))

    async def run_device(self, step: str, *arguments: str | int | bytes) -> Any:
        """Run a step of ``device_logins``."""
        return await self._cache.run(_script("device"), (_KEYS_BEGIN,), (repr(self._clock()), step, *arguments))

    async def _run(self, name: str, now: float, *arguments: str | int | float | bytes) -> Sequence[bytes] | None:
        reply: Sequence[bytes] | None = await self._cache.run(_script(name), (_KEYS_BEGIN,), (repr(now), *arguments))
        return reply

    def _idle_ms(self, kind: SessionKind) -> int:
        return _milliseconds(self._idle_seconds[kind])

    def _step_fields(self, kind: SessionKind, step: Step, now: float) -> dict[str, str]:
        if step is not Step.DONE:
            ends_at = repr(now + HALFWAY_SECONDS)
        else:
            ends_at = repr(now + self._longest_seconds) if kind is SessionKind.BROWSER else ""
        return {"step": step.value, "ends_at": ends_at}


def _script(name: str) -> str:
    return f"session_{name}"


def _most(step: Step) -> int:
    return MAX_OPEN if step is Step.DONE else MAX_HALFWAY


def _factor_fields(confirmed_at: float, *, has_factor: bool) -> dict[str, str]:
    return {"confirmed_at": _text(confirmed_at), "has_factor": _text(has_factor)}


def _token_fields(token: SessionToken) -> dict[str, str]:
    return {"family": token.family_hash, "token": token.hash}


def _flat(fields: Mapping[str, str]) -> tuple[str, ...]:
    return tuple(word for pair in fields.items() for word in pair)


def _fields(flat: Sequence[bytes]) -> dict[str, str]:
    words = [word.decode() for word in flat]
    return dict(zip(words[::2], words[1::2], strict=True))


def _read(row: Sequence[object]) -> tuple[str, dict[str, str]]:
    session_id, flat = row
    assert isinstance(session_id, bytes)
    assert isinstance(flat, list)
    return session_id.decode(), _fields(flat)


def _found(row: Sequence[object] | None) -> StoredSession | None:
    return None if row is None else _session(*_read(row))


def _ended(flat: Sequence[bytes] | None) -> list[ClosedSession]:
    return [ClosedSession(session_id, msgspec.convert(user, UserId)) for session_id, user in _fields(flat or ()).items()]


def _written(session: StoredSession) -> dict[str, str]:
    """``_session`` reads it."""
    values = msgspec.to_builtins(session)
    del values["id"]
    return {name: _text(value) for name, value in (values | values.pop("client")).items()}


def _session(session_id: str, fields: Mapping[str, str]) -> StoredSession:
    known = {name: value for name, value in fields.items() if value}
    client = {name: known.get(name, "") for name in ("address", "agent")}
    return msgspec.convert({**known, "id": session_id, "client": client}, StoredSession, strict=False)


def _new_id() -> str:
    return secrets.token_hex(16)


def _printable(text: str, longest: int) -> str:
    """Make a client's own name for itself fit for pages and logs."""
    return "".join(character for character in text[:longest] if character.isprintable())


def _text(value: object) -> str:
    """Return a value of a struct as `msgspec.convert` reads it; None is empty, and left out."""
    return "" if value is None else str(int(value)) if isinstance(value, bool) else str(value)


def _milliseconds(seconds: float) -> int:
    return max(1, round(seconds * 1000))
