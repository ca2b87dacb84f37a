"""Export and erasure on real stores, and a user with data in every table and in Valkey."""

import asyncio
import dataclasses
import secrets
import time
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any, cast
from uuid import UUID, uuid4

import msgspec

from services.auth import audit_records
from services.auth.audit.audit_log import AuditLog
from services.auth.audit.audit_store import AuditStore
from services.auth.privacy import export
from services.auth.privacy.erasure import Erasures
from services.auth.privacy.export import Exports
from services.auth.privacy.privacy_store import PrivacyStore
from services.auth.sessions.session_store import SessionStore, StoredLogin
from shared import errors
from shared.api import accounts, auth
from shared.api.method import Method, Reply, Request
from shared.background.deferred_memory import DeferredMemory
from shared.background.items import BackgroundItems
from shared.protocol.directory import Announcement, Directory
from shared.rpc import StreamCall
from shared.telemetry import Metrics
from shared.types import ModelName, NodeId, Role, UserId, UserRole
from tests.services.auth.accounts.surroundings import CLIENT, ApiClient, Person, by_hand
from tests.services.auth.surroundings import Gateway, call


def new_items() -> BackgroundItems:
    return BackgroundItems(DeferredMemory(), Metrics("auth"))


class AwaySessions:
    """Sessions while Valkey is down."""

    async def end_all(self, user_id: UserId, but: str | None = None) -> int:
        raise errors.Unavailable("Valkey does not answer")


class _Collected:
    """Collects the items of a stream."""

    def __init__(self) -> None:
        self.bodies: list[bytes] = []

    async def send_item(self, call_id: int, body: bytes) -> None:
        self.bodies.append(body)

    def credited_items(self, call_id: int) -> int:
        return 0

    def accept(self, call_id: int, body: bytes) -> None:
        """Do nothing."""


class PrivacyDesk:
    """The export and erasure handlers, with the real sessions and the real audit log."""

    def __init__(self, api_client: ApiClient) -> None:
        self.api_client = api_client
        self.url = api_client.settings.database_url
        self.sessions = SessionStore(api_client.cache, idle_seconds=3600, longest_seconds=43_200)
        self.audit = AuditStore(api_client.database)
        self.log = AuditLog(self.audit)
        self.rows = PrivacyStore(api_client.database)
        self.gateway = Gateway()
        self.directory = Directory(time.monotonic)
        self.erasures = self.replica()
        self.exports = Exports(self._parts(), self.rows, (export.sessions(self.sessions), export.audit(self.audit)))
        api_client.dispatcher.add(self.erasures)
        api_client.dispatcher.add(self.exports)

    def replica(self, sessions: Any = None) -> Erasures:
        parts = dataclasses.replace(self._parts(), sessions=sessions or self.sessions)
        return Erasures(parts, self.rows, self.audit, self.api_client.mailer, new_items())

    def _parts(self) -> Any:
        return dataclasses.replace(
            self.api_client.parts, trail=self.log, node=cast("Any", SimpleNamespace(rpc=self.gateway, directory=self.directory))
        )

    def announce(self, *features: str) -> None:
        """Let there be a gateway with these features."""
        self.directory.apply_announcement(Announcement(Role.GATEWAY, NodeId("UGATEWAY"), "1", datetime.now(UTC), features=features), "nats")

    async def ask(self, method: Method[Request, Reply], request: Request, credential: str) -> Reply:
        return await self.api_client.ask(method, request, credential)

    async def plan(self, person: Person) -> accounts.Erasure:
        return await self.ask(accounts.request_erasure, accounts.RequestErasure(), person.login())

    async def sql(self, text: str, *arguments: object) -> list[Any]:
        return await by_hand(self.url, text, *arguments)

    async def let_time_pass(self, person: Person) -> None:
        """End the grace period."""
        await self.sql("UPDATE users SET erase_at = now() - interval '1 second' WHERE id = $1 AND erase_at IS NOT NULL", person.id)

    async def erase(self, person: Person) -> None:
        await self.plan(person)
        await self.let_time_pass(person)
        await self.erasures.erase_due()

    async def export(self, credential: str) -> dict[str, bytes]:
        """Return the files, as a client that saves the stream gets them."""
        api_client, collected = self.api_client, _Collected()
        handler, asked = api_client.dispatcher.find("auth.exportAccount", CLIENT), call(credential, peer=CLIENT)
        assert api_client.dispatcher.gate is not None
        request = accounts.ExportAccount()
        stream: StreamCall[accounts.ExportedFile] = StreamCall(asked, collected, 1)
        stream.found = await api_client.dispatcher.gate.admit(handler.method, request, asked)
        await handler.function(request, stream)
        files: dict[str, bytes] = {}
        for body in collected.bodies:
            piece = msgspec.msgpack.decode(body, type=accounts.ExportedFile)
            assert len(piece.content) <= 65_536
            assert piece.name not in files or list(files)[-1] == piece.name, "pieces of one file come one after the other"
            files[piece.name] = files.get(piece.name, b"") + piece.content
        return files

    async def team(self, owner: Person, name: str, *members: tuple[Person, str]) -> UUID:
        team = uuid4()
        await self.sql("INSERT INTO organisations (id, name) VALUES ($1, $2)", team, name)
        for member, role in ((owner, "owner"), *members):
            sql = "INSERT INTO organisation_members (organisation_id, user_id, role, joined_at) VALUES ($1, $2, $3, clock_timestamp())"
            await self.sql(sql, team, member.id, role)
        return team

    async def every_cell(self) -> str:
        """Return all stored data: each column of each row of each table of the schema, and each key and value in Valkey."""
        tables = await self.sql(
            "SELECT c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace"
            " WHERE n.nspname = 'auth' AND c.relkind IN ('r', 'p', 'm')"
        )
        assert len(tables) > 15
        cells = [repr(await self.sql(f'SELECT x::text FROM "{row["relname"]}" AS x')) for row in tables]
        return "\n".join([*cells, *await asyncio.to_thread(_every_value, self.api_client.settings.redis_url)])


def _every_value(url: str) -> list[str]:
    import redis

    found = []
    with redis.Redis.from_url(url) as client:
        for key in cast("list[bytes]", client.keys("*")):
            kind = cast("bytes", client.type(key)).decode()
            value: object = {
                "string": lambda key=key: client.get(key),
                "hash": lambda key=key: client.hgetall(key),
                "set": lambda key=key: client.smembers(key),
                "zset": lambda key=key: client.zrange(key, 0, -1),
                "list": lambda key=key: client.lrange(key, 0, -1),
            }[kind]()
            found.append(f"{key!r} {value!r}")
    return found


class Canaries:
    """Words that stand for the data of a person, one for each place."""

    NAMES = (
        "username", "email", "key", "key_preview", "key_hash", "key_network", "key_model", "former_hash", "model", "organisation",
        "team_key", "invited_from", "subject", "oidc_email", "recovery", "node", "label", "ticket_label", "address", "agent",
        "refused_from", "mention", "notice",
    )  # fmt: skip

    def __init__(self) -> None:
        self.words = {name: f"canary{number}x{secrets.token_hex(6)}" for number, name in enumerate(self.NAMES)}
        assert len(self.words) >= 20

    def __getattr__(self, name: str) -> str:
        return self.words[name]

    def left_in(self, text: str) -> list[str]:
        return [name for name, word in self.words.items() if word in text]


async def user_with_data(api_client: PrivacyDesk, canaries: Canaries) -> Person:
    """Create a user with data in every table."""
    person = await api_client.api_client.person(canaries.username)
    sql, known = api_client.sql, canaries
    email = f"{known.email}@example.com"
    await sql("UPDATE users SET email = $2 WHERE id = $1", person.id, email)
    chosen = accounts.Preferences(ModelName(known.model), "dark")
    await api_client.ask(accounts.set_preferences, accounts.SetPreferences(chosen), person.login())
    key = "INSERT INTO api_keys (id, user_id, name, preview, key_hash, networks, models, team_id) VALUES ($1, $2, $3, $4, $5, $6, $7, $8)"
    key_id = uuid4()
    await sql(key, key_id, person.id, known.key, known.key_preview, known.key_hash, [known.key_network], [known.key_model], None)
    await sql("INSERT INTO former_key_hashes (key_hash, key_id, good_until) VALUES ($1, $2, now())", known.former_hash, key_id)
    team = await api_client.team(person, known.organisation)
    await sql(key, uuid4(), person.id, known.team_key, "p", "h2", [], [], team)
    invitation = (
        "INSERT INTO invitations (id, organisation_id, email, role, token_hash, invited_by, expires_at)"
        " VALUES ($1, $2, $3, 'member', $4, $5, now() + interval '1 day')"
    )
    await sql(invitation, uuid4(), team, f"{known.invited_from}@example.com", "t1", person.id)
    other = await api_client.api_client.person("inviter")
    await sql(invitation, uuid4(), await api_client.team(other, "others"), email.upper(), "t2", other.id)
    await sql(
        "INSERT INTO oidc_identities (issuer, subject, user_id, email) VALUES ('https://idp', $1, $2, $3)",
        known.subject, person.id, f"{known.oidc_email}@example.com",
    )  # fmt: skip
    await sql(
        "INSERT INTO second_factors (user_id, sealed_seed, enabled_at, recovery_hashes) VALUES ($1, 'seed', now(), $2)",
        person.id, [known.recovery],
    )  # fmt: skip
    await sql(
        "INSERT INTO nodes (id, role, name, owner, labels) VALUES ($1, 'worker', $2, $3, jsonb_build_object('at', $4::text))",
        "U" + "A" * 55, known.node, person.id, known.label,
    )  # fmt: skip
    await sql(
        "INSERT INTO tickets (id, public_key, role, owner, labels, needs_approval, uses, expires_at)"
        " VALUES ('t', 'k', 'worker', $1, jsonb_build_object('at', $2::text), false, 1, now() + interval '1 day')",
        person.id, known.ticket_label,
    )  # fmt: skip
    await sql(
        "INSERT INTO notices (user_id, kind, subject, details) VALUES ($1, 'sign_in', 's', jsonb_build_object('address', $2::text))",
        person.id, known.notice,
    )  # fmt: skip
    await api_client.sessions.open(StoredLogin(user_id=person.id, client=auth.ClientFacts(known.address, known.agent)))
    async with api_client.audit.transaction() as transaction:
        await api_client.log.add(transaction, audit_records.done_by("session.open", person.id, address=known.address, agent=known.agent))
    async with api_client.audit.transaction() as transaction:
        await api_client.log.add(
            transaction, audit_records.done_by("organisation.invite", other.id, email=email.upper(), note=known.mention)
        )
        await api_client.log.add(transaction, audit_records.done_by("organisation.invite", other.id, email="somebody.else@example.com"))
    refused = audit_records.refused("session.open", None, "wrong password")
    api_client.log.note(msgspec.structs.replace(refused, target=str(person.id), address=known.refused_from))
    await api_client.log.write()
    await api_client.ask(accounts.request_password_reset, accounts.RequestPasswordReset(email), "")
    await api_client.api_client.changes.settled()
    return Person(api_client.api_client, await person.again())


async def administrator(api_client: PrivacyDesk, name: str) -> Person:
    return await api_client.api_client.person(name, role=UserRole.ADMIN)
