"""auth: the audit log of sensitive and refused actions, with one hash chain per tenant and one for the platform."""

from enum import StrEnum
from typing import Annotated

import msgspec

from shared.api.auth import PEOPLE
from shared.api.method import Body, Method, Nothing, StreamMethod
from shared.types import Moment, NodeId, Role, TenantId, UserId

Filter = Annotated[str, msgspec.Meta(max_length=200)]


class Result(StrEnum):
    DONE = "done"
    REFUSED = "refused"
    FAILED = "failed"


class AuditedAct(Body, frozen=True, omit_defaults=False):
    """An action, as reported by the service that saw it."""

    at: Moment
    #: Such as `key.create`; docs/reference/audit.md lists all.
    action: str
    #: None for an action that belongs to no tenant.
    tenant_id: TenantId | None
    #: None if the user is unknown.
    actor: UserId | None
    result: Result = Result.DONE
    #: An id or a name, never a secret.
    target: str = ""
    #: The client's address. Personal, so it is kept outside the chain.
    address: str = ""
    request_id: str = ""
    #: Kept outside the chain, because some details are personal.
    details: dict[str, str] = msgspec.field(default_factory=dict)
    #: How many identical actions this row stands for.
    times: int = 1


class RecordActs(Body, frozen=True):
    """From other services, at most 200 at once."""

    acts: Annotated[tuple[AuditedAct, ...], msgspec.Meta(max_length=200)]


class AuditRow(Body, frozen=True, omit_defaults=False):
    #: `house` for the platform, or a tenant's id.
    chain: str
    sequence: int
    act: AuditedAct
    actor_name: str
    #: In hex.
    hash: str
    #: The personal part was erased; the chain is still valid.
    erased: bool = False
    #: The previous row's hash, in hex.
    prev_hash: str = ""
    #: The salted digest of the personal part, and its salt, in hex. Empty without a personal part; the salt is also empty after erasure.
    details_digest: str = ""
    salt: str = ""


class ListAudit(Body, frozen=True):
    """Newest first."""

    #: `house` for the platform, or a tenant's id; None for all.
    chain: Filter | None = None
    actor: Filter | None = None
    action: Filter | None = None
    result: Result | None = None
    since: Moment | None = None
    #: For the next page: only rows before this time.
    before: Moment | None = None
    limit: Annotated[int, msgspec.Meta(ge=1, le=500)] = 100


class AuditRows(Body, frozen=True):
    rows: tuple[AuditRow, ...]


class ExportAudit(Body, frozen=True):
    chain: str | None = None
    since: Moment | None = None


class VerifyAudit(Body, frozen=True):
    chain: str | None = None


class ChainState(Body, frozen=True, omit_defaults=False):
    chain: str
    rows: int
    #: The number of the first row that was changed; None if the chain is valid.
    first_bad: int | None
    why: str
    #: How many signed anchors were compared.
    anchors: int
    #: Which rows a restored database had lost. Their numbers were given to later rows.
    lost: str = ""


class AuditReport(Body, frozen=True):
    chains: tuple[ChainState, ...]
    #: The key that signs anchors, to be compared with the key in the anchor file.
    anchor_key: NodeId = NodeId("")

    @property
    def is_whole(self) -> bool:
        return all(chain.first_bad is None for chain in self.chains)


record_acts = Method("auth.recordActs", RecordActs, Nothing, callers={Role.GATEWAY, Role.WEB, Role.METRICS})
list_audit = Method("auth.listAudit", ListAudit, AuditRows, callers=PEOPLE)
export_audit = StreamMethod("auth.exportAudit", ExportAudit, item=AuditRow, end=Nothing, callers=PEOPLE)
verify_audit = Method("auth.verifyAudit", VerifyAudit, AuditReport, callers=PEOPLE)
