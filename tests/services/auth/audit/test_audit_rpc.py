"""The audit log's methods, through the gate: permissions, searches, and that an export is itself logged."""

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, cast
from uuid import UUID

import msgspec
import pytest

from services.auth import store as stores
from services.auth.audit.anchoring import Anchoring
from services.auth.audit.audit_log import AuditLog
from services.auth.audit.audit_rpc import AuditRpc
from services.auth.audit.audit_store import AuditStore
from services.auth.audit.verification import Verification
from services.auth.store import AccountTables
from shared import errors
from shared.api import audit, auth
from shared.api.method import Method, Reply, Request
from shared.audit_chain import PLATFORM_CHAIN, ChainVerifier
from shared.rpc import Dispatcher, RpcCall, StreamCall
from shared.rpc.authorization import Authorizer
from shared.telemetry import Metrics
from shared.types import Credential, MeshName, NodeId, Peer, Role, Tier, UserId, UserRole
from tests.services.auth.audit.conftest import KEYS
from tests.services.auth.audit.deeds import BEGIN, TENANT, act, all_rows, fill, superuser

ADMIN = auth.Principal(user_id=UserId(UUID(int=99)), username="root", role=UserRole.ADMIN, tier=Tier.FREE)
DEVELOPER = auth.Principal(user_id=UserId(UUID(int=98)), username="dora", role=UserRole.DEVELOPER, tier=Tier.FREE)
KNOWN = {"root": ADMIN, "dora": DEVELOPER}
EVERYTHING = audit.ListAudit()


class Reader:
    """Collects the items of a stream."""

    def __init__(self) -> None:
        self.rows: list[audit.AuditRow] = []

    async def send_item(self, call_id: int, body: bytes) -> None:
        self.rows.append(msgspec.msgpack.decode(body, type=audit.AuditRow))

    def credited_items(self, call_id: int) -> int:
        return 0

    def accept(self, call_id: int, body: bytes) -> None:
        """Do nothing."""


@dataclass
class AuditService:
    store: AccountTables
    rows: AuditStore
    dispatcher: Dispatcher = field(init=False)

    def __post_init__(self) -> None:
        verification = Verification(self.rows, Anchoring(self.rows, KEYS, MeshName("test"), None), Metrics("auth"))
        self.dispatcher = Dispatcher(cast("asyncio.TaskGroup", None), lambda *_: None, lambda *_: None)
        self.dispatcher.gate = Authorizer(self._identify, lambda *_: None)
        self.dispatcher.add(AuditRpc(self.store, AuditLog(self.rows), self.rows, verification))

    async def _identify(self, credential: Credential | None) -> auth.Principal:
        if credential is None:
            raise errors.NotAuthenticated("this call needs a credential")
        return KNOWN[credential]

    def call(self, credential: str | None, role: Role) -> RpcCall:
        known = None if credential is None else Credential(credential)
        return RpcCall(Peer(role, NodeId("U" * 56)), deadline=time.monotonic() + 10, credential=known, idempotency_key=None)

    async def ask(
        self, method: Method[Request, Reply], request: Request, credential: str | None = "root", role: Role = Role.CLIENT
    ) -> Reply:
        asked = self.call(credential, role)
        handler = self.dispatcher.find(method.name, asked.caller)
        assert self.dispatcher.gate is not None
        asked.found = await self.dispatcher.gate.admit(method, request, asked)
        return cast("Reply", await handler.function(request, asked))

    async def export(self, request: audit.ExportAudit) -> list[audit.AuditRow]:
        reader, asked = Reader(), self.call("root", Role.CLIENT)
        stream = StreamCall[audit.AuditRow](asked, reader, 1)
        handler = self.dispatcher.find(audit.export_audit.name, asked.caller)
        stream.found = ADMIN
        await handler.function(request, stream)
        return reader.rows


@pytest.fixture
async def audit_service(postgres_url: str) -> AsyncIterator[AuditService]:
    async with stores.opened(postgres_url) as database:
        yield AuditService(AccountTables(database), AuditStore(database))


async def test_an_administrator_reads_the_log(audit_service: AuditService) -> None:
    async with audit_service.store.adding_user() as transaction:
        anna = await audit_service.store.add_user(transaction, "anna", "anna@example.com", "hash")
    await fill(audit_service.rows, act(1), act(2, actor=anna.id), act(3, tenant_id=None, actor=anna.id))
    found = (await audit_service.ask(audit.list_audit, EVERYTHING)).rows
    assert [(row.sequence, row.chain, row.actor_name) for row in found] == [
        (1, PLATFORM_CHAIN, "anna"),
        (2, str(TENANT), "anna"),
        (1, str(TENANT), ""),
    ]
    for name in ("anna", "anna@example.com", str(anna.id)):
        assert (await audit_service.ask(audit.list_audit, audit.ListAudit(actor=name))).rows == found[:2]
    # An actor without an account is found by the id in the rows.
    assert len((await audit_service.ask(audit.list_audit, audit.ListAudit(actor=str(UUID(int=1))))).rows) == 1
    with pytest.raises(errors.NotFound, match="there is no user 'nobody"):
        await audit_service.ask(audit.list_audit, audit.ListAudit(actor="nobody"))


@pytest.mark.parametrize(
    ("method", "request_"),
    [(audit.list_audit, audit.ListAudit()), (audit.verify_audit, audit.VerifyAudit())],
)
async def test_other_users_cannot_read_the_log(audit_service: AuditService, method: Method[Any, Any], request_: msgspec.Struct) -> None:
    with pytest.raises(errors.NotAllowed, match="dora is no administrator"):
        await audit_service.ask(method, request_, "dora")
    with pytest.raises(errors.NotAuthenticated, match="this call needs a credential"):
        await audit_service.ask(method, request_, None)


async def test_other_services_add_their_reports(audit_service: AuditService) -> None:
    await audit_service.ask(audit.record_acts, audit.RecordActs((act(1), act(2, tenant_id=None))), None, Role.GATEWAY)
    await audit_service.ask(audit.record_acts, audit.RecordActs(()), None, Role.WEB)
    assert [row.act for row in (await audit_service.ask(audit.list_audit, EVERYTHING)).rows] == [act(2, tenant_id=None), act(1)]
    with pytest.raises(errors.WrongRole, match=r"a client may not call auth\.recordActs"):
        await audit_service.ask(audit.record_acts, audit.RecordActs((act(1),)), None, Role.CLIENT)


async def test_an_exported_log_can_be_verified_offline(audit_service: AuditService) -> None:
    await fill(audit_service.rows, *(act(number) for number in range(700)), act(1, tenant_id=None))
    async with audit_service.rows.transaction() as transaction:
        await audit_service.rows.shred_of(transaction, UserId(UUID(int=1)))
    taken = await audit_service.export(audit.ExportAudit())
    assert (len(taken), sum(row.erased for row in taken)) == (702, 701)
    for chain in (str(TENANT), PLATFORM_CHAIN):
        verifier = ChainVerifier(chain)
        for row in taken:
            if row.chain == chain:
                verifier.take(row)
        assert verifier.state().first_bad is None
    (row,) = [row for row in taken if row.act.action == "audit.export"]
    assert (row.chain, row.act.actor, row.act.target) == (PLATFORM_CHAIN, ADMIN.user_id, "")


async def test_part_of_the_log_is_exported_without_gaps_despite_clock_steps(audit_service: AuditService) -> None:
    # If two acts wait for the lock of their chain, the older one may be written second.
    await fill(audit_service.rows, act(1), act(5), act(3), act(6))
    since = BEGIN + timedelta(seconds=4)
    taken = await audit_service.export(audit.ExportAudit(chain=str(TENANT), since=since))
    assert [row.sequence for row in taken] == [2, 3, 4]
    assert await audit_service.export(audit.ExportAudit(chain=str(TENANT), since=BEGIN + timedelta(days=1))) == []


async def test_a_verification_is_logged_as_well(audit_service: AuditService, postgres_url: str) -> None:
    await fill(audit_service.rows, *(act(number) for number in range(5)), act(1, tenant_id=None))
    report = await audit_service.ask(audit.verify_audit, audit.VerifyAudit())
    assert [(state.chain, state.rows, state.first_bad) for state in report.chains] == [(str(TENANT), 5, None), (PLATFORM_CHAIN, 1, None)]
    assert (report.is_whole, report.anchor_key) == (True, KEYS.current.id)
    async with superuser(postgres_url) as db:
        await db.execute("UPDATE audit_log SET target = 'x' WHERE chain <> 'house' AND sequence = 3")
    report = await audit_service.ask(audit.verify_audit, audit.VerifyAudit(str(TENANT)))
    assert [(state.chain, state.first_bad) for state in report.chains] == [(str(TENANT), 3)]
    first, second = (await all_rows(audit_service.rows, PLATFORM_CHAIN))[1:]
    assert (first.act.action, first.act.actor, first.act.details) == ("audit.verify", ADMIN.user_id, {})
    assert (second.act.target, second.act.details) == (str(TENANT), {"found": f"{TENANT} 3"})
