"""auth: the record of sensitive acts and refused ones, in one hash chain for each tenant and one for the house."""

from datetime import datetime
from enum import StrEnum
from typing import Annotated

import msgspec

from shared.api.auth import PEOPLE
from shared.api.method import Body, Method, Nothing, StreamMethod
from shared.types import NodeId, Role, TenantId, UserId


class Result(StrEnum):
    DONE = "done"
    REFUSED = "refused"
    FAILED = "failed"


class AuditedAct(Body, frozen=True, omit_defaults=False):
    """What happened, as the service that saw it tells it."""

    at: datetime
    #: Such as `key.create`; docs/reference/audit.md lists them.
    action: str
    #: Whose; None for an act of the house that belongs to no tenant.
    tenant_id: TenantId | None
    #: Who did it; None where nobody is known.
    actor: UserId | None
    result: Result = Result.DONE
    #: What it was done to: an id or a name, never a secret.
    target: str = ""
    #: Where the request came from; personal, and so kept apart from the chain.
    address: str = ""
    request_id: str = ""
    #: More of what it was; personal or not, kept apart from the chain.
    details: dict[str, str] = msgspec.field(default_factory=dict)
    #: How many equal ones this row stands for.
    times: int = 1


class RecordActs(Body, frozen=True):
    """By the other services; at most 200 at once."""

    acts: Annotated[tuple[AuditedAct, ...], msgspec.Meta(max_length=200)]


class AuditRow(Body, frozen=True, omit_defaults=False):
    #: `house`, or a tenant's id.
    chain: str
    sequence: int
    act: AuditedAct
    actor_name: str
    #: In hex.
    hash: str
    #: The personal part was erased; the chain still holds.
    erased: bool = False
    #: The hash of the row before, in hex; what the chain is checked by, wherever the rows are.
    prev_hash: str = ""
    #: What stands for the personal part in the hash, and its salt, in hex: empty where there is none, the salt also once it was erased.
    details_digest: str = ""
    salt: str = ""


class ListAudit(Body, frozen=True):
    """The newest first."""

    #: `house`, or a tenant's id; None for all.
    chain: str | None = None
    actor: str | None = None
    action: str | None = None
    result: Result | None = None
    since: datetime | None = None
    #: Only rows before this one, to go on with a list.
    before: datetime | None = None
    limit: Annotated[int, msgspec.Meta(ge=1, le=500)] = 100


class AuditRows(Body, frozen=True):
    rows: tuple[AuditRow, ...]


class ExportAudit(Body, frozen=True):
    chain: str | None = None
    since: datetime | None = None


class VerifyAudit(Body, frozen=True):
    chain: str | None = None


class ChainState(Body, frozen=True, omit_defaults=False):
    chain: str
    rows: int
    #: The number of the first row that is not as it was written; None where all are.
    first_bad: int | None
    why: str
    #: How many signed anchors were compared.
    anchors: int


class AuditReport(Body, frozen=True):
    chains: tuple[ChainState, ...]
    #: Who signs the anchors; an auditor compares it with the key in the file of anchors.
    anchor_key: NodeId = NodeId("")

    @property
    def is_whole(self) -> bool:
        return all(chain.first_bad is None for chain in self.chains)


record_acts = Method("auth.recordActs", RecordActs, Nothing, callers={Role.GATEWAY, Role.WEB, Role.METRICS})
list_audit = Method("auth.listAudit", ListAudit, AuditRows, callers=PEOPLE)
export_audit = StreamMethod("auth.exportAudit", ExportAudit, item=AuditRow, end=Nothing, callers=PEOPLE)
verify_audit = Method("auth.verifyAudit", VerifyAudit, AuditReport, callers=PEOPLE)
