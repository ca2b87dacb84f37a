"""The fake mesh, usage part of the gateway: reports, the request log, models, prices."""

from collections.abc import AsyncIterator
from datetime import datetime, timedelta
from typing import TYPE_CHECKING
from uuid import UUID

import msgspec

from shared import errors
from shared.api import auth, configuration, gateway, ledger, servers, usage_report
from shared.api.usage_report import Bucket, LoggedRequest, UsageBucket, UsageOfKey, UsageOfModel, UsageSum
from shared.types import Credential, KeyId, MicroCredits, ModelName, NodeId, RequestId, RequestStatus, Role, UserRole

if TYPE_CHECKING:
    from tests.services.web.fake_mesh import Account

_STEP = {Bucket.MINUTE: timedelta(minutes=1), Bucket.HOUR: timedelta(hours=1), Bucket.DAY: timedelta(days=1)}


class FakeUsage:
    """Handlers, mixed into ``FakeMesh``. A test reads and writes the attributes."""

    accounts: dict[str, "Account"]

    def __init__(self) -> None:
        super().__init__()
        #: Time and amount of each use.
        self.used_at: list[tuple[datetime, UsageSum]] = []
        self.used_models: tuple[UsageOfModel, ...] = ()
        self.used_keys: tuple[UsageOfKey, ...] = ()
        #: Newest last.
        self.logged: list[LoggedRequest] = []
        self.limits: tuple[gateway.LimitState, ...] = ()
        self.served: tuple[gateway.ServedModel, ...] | None = None
        self.nodes: list[gateway.NodeRow] = []
        self.prices: list[ledger.ModelPrice] = []
        #: The workers' answers to load and unload requests; if empty, the first worker succeeds.
        self.places: tuple[gateway.ModelPlace, ...] = ()
        #: Added by administrators.
        self.servers: tuple[servers.ServerRow, ...] = ()
        #: Returned for each change of the configuration.
        self.warnings: tuple[str, ...] = ()

    # --- for tests -------------------------------------------------------------------------------------------------------

    def use(  # noqa: PLR0917 - numbers of one row
        self, at: datetime, requests: int, tokens: int = 0, cost: int = 0, p95_ms: int | None = None, failed: int = 0
    ) -> None:
        half = None if p95_ms is None else p95_ms // 2
        self.used_at.append((at, UsageSum(requests, failed, tokens, 0, MicroCredits(cost), 0, half, p95_ms)))

    def log(
        self, at: datetime, status: RequestStatus = RequestStatus.SUCCESS, code: str | None = None, model: str = "smollm2", **more: object
    ) -> LoggedRequest:
        user = next(iter(self.accounts.values())).user
        made = LoggedRequest(
            id=RequestId(UUID(int=len(self.logged) + 1)), created_at=at, user_id=user.id, key_id=None, model=ModelName(model),
            status=status, error_code=code, prompt_tokens=1200, completion_tokens=34, response_time_ms=1234,
            cost_micro=MicroCredits(1_500), cached=False,
        )  # fmt: skip
        self.logged.append(msgspec.structs.replace(made, **more))
        return self.logged[-1]

    def add_worker(self, name: str, *models: str, why_not: str = "", labels: dict[str, str] | None = None) -> gateway.NodeRow:
        row = gateway.NodeRow(
            NodeId(name), Role.WORKER, "inference", "direct", True, not why_not, why_not, tuple(map(ModelName, models)),
            datetime(2026, 11, 20).astimezone(), "1.0.0", 1, 2, 4, labels=labels or {},
        )  # fmt: skip
        self.nodes.append(row)
        return row

    # --- handlers --------------------------------------------------------------------------------------------------------

    def _get_usage_report(self, request: usage_report.GetUsageReport, credential: Credential | None) -> usage_report.UsageSummary:
        self._user(credential)
        step = _STEP[request.bucket]
        number = -int((request.since - request.until) // step)
        if number > usage_report.MAX_BUCKETS:
            raise errors.BadRequest(f"that is {number} {request.bucket}s", hint="ask for a shorter time")
        used = [*self.used_at, *((each.created_at, _of_one(each)) for each in self.logged)]
        starts = [request.since + step * position for position in range(number)]
        buckets = tuple(UsageBucket(at, _sum([each for when, each in used if at <= when < at + step])) for at in starts)
        total = _sum([each for when, each in used if request.since <= when < request.until])
        return usage_report.UsageSummary(total, buckets, self.used_models, self.used_keys)

    def _list_requests(self, request: usage_report.ListRequests, credential: Credential | None) -> usage_report.LoggedRequests:
        self._user(credential)
        found = [
            each
            for each in sorted(self.logged, key=lambda each: each.created_at, reverse=True)
            if request.status in (None, each.status)
            and request.model in (None, each.model)
            and request.key_id in (None, each.key_id)
            and (request.before is None or each.created_at < request.before)
        ]
        return usage_report.LoggedRequests(tuple(found[: request.limit]))

    async def _export_requests(
        self, _: usage_report.ExportRequests, credential: Credential | None
    ) -> AsyncIterator[usage_report.LoggedRequests]:
        self._user(credential)
        for request in self.logged:
            yield usage_report.LoggedRequests((request,))

    def _list_nodes(self, _: object, credential: Credential | None) -> object:
        self._user(credential)
        return gateway.NodeRows(tuple(self.nodes))

    def _list_prices(self, _request: ledger.ListPrices, _: Credential | None) -> ledger.ModelPrices:
        return ledger.ModelPrices(tuple(self.prices))

    def _list_servers(self, _request: servers.ListServers, credential: Credential | None) -> servers.ServerRows:
        if self._user(credential).role is not UserRole.ADMIN:
            raise errors.NotAllowed("you may not do this: it needs *")
        return servers.ServerRows(self.servers)

    def _apply_config(self, _request: configuration.ApplyConfig, credential: Credential | None) -> configuration.AppliedConfig:
        if self._user(credential).role is not UserRole.ADMIN:
            raise errors.NotAllowed("you may not do this: it needs *")
        return configuration.AppliedConfig(2, (), self.warnings)

    def _load_model(self, request: gateway.LoadOnWorker, credential: Credential | None) -> gateway.ModelPlaces:
        return self._obeyed(request.model, credential)

    def _unload_model(self, request: gateway.UnloadOnWorkers, credential: Credential | None) -> gateway.ModelPlaces:
        return self._obeyed(request.model, credential)

    def _obeyed(self, model: ModelName, credential: Credential | None) -> gateway.ModelPlaces:
        if self._user(credential).role not in (UserRole.ADMIN, UserRole.DEVELOPER):
            raise errors.NotAllowed("you may not do this: it needs model:write", hint="ask an administrator of this mesh to do it")
        if not any(model in row.models for row in self.nodes):
            raise errors.UnknownModel(f"no worker has the model {model!r}", hint="look at the models")
        return gateway.ModelPlaces(self.places or (gateway.ModelPlace(self.nodes[0].id, model, "ready", ""),))

    def _user(self, credential: Credential | None) -> auth.User:
        raise NotImplementedError


def _of_one(request: LoggedRequest) -> UsageSum:
    failed = int(request.status in (RequestStatus.ERROR, RequestStatus.TIMEOUT))
    took = request.response_time_ms
    return UsageSum(1, failed, request.prompt_tokens, request.completion_tokens, request.cost_micro, int(request.cached), took, took)


def _sum(sums: list[UsageSum]) -> UsageSum:
    return UsageSum(
        sum(each.requests for each in sums),
        sum(each.errors for each in sums),
        sum(each.prompt_tokens for each in sums),
        sum(each.completion_tokens for each in sums),
        MicroCredits(sum(each.cost_micro for each in sums)),
        sum(each.cached for each in sums),
        max((each.p50_ms for each in sums if each.p50_ms is not None), default=None),
        max((each.p95_ms for each in sums if each.p95_ms is not None), default=None),
    )


def key_of(number: int) -> KeyId:
    return KeyId(UUID(int=number))
