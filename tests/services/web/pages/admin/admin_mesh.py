"""The fake mesh with what administrators need: nodes, tickets, users, prices, the audit log and the health of every component."""

from collections.abc import AsyncIterator
from datetime import timedelta
from uuid import UUID, uuid4

import msgspec

from services.web import mesh_calls
from shared import errors
from shared.api import audit, auth, gateway, ledger, membership, metrics, organizations, service_settings, usage_report
from shared.api.membership import Member, MemberState, TicketRow, TicketState
from shared.api.method import Nothing
from shared.types import Credential, MicroCredits, ModelName, NodeId, RequestId, Role, TenantId, Tier, UserId, UserRole
from tests.services.web.fake_mesh import NOW, Account
from tests.services.web.pages.admin.fake_alerts import FakeAlerts
from tests.services.web.pages.admin.fake_history import FakeHistory
from tests.services.web.pages.admin.fake_report import FakeReport
from tests.services.web.pages.admin.fake_routes import FakeRoutes

#: 56 characters of base32, like a node's key.
WORKER = NodeId("U" + "WORKER" + "A" * 49)
WAITING = NodeId("U" + "WAITING" + "A" * 48)
GATEWAY = NodeId("U" + "GATEWAY" + "A" * 48)


class AdminMesh(FakeReport, FakeHistory, FakeAlerts, FakeRoutes):
    """A test writes the lists and reads ``calls``."""

    def __init__(self) -> None:
        super().__init__()
        self.members: list[Member] = []
        self.nodes: list[gateway.NodeRow] = []
        self.tickets: list[TicketRow] = []
        self.warnings: tuple[str, ...] = ()
        self.install = self.install_needs = ""
        self.organisations: list[organizations.Organization] = []
        self.prices: list[ledger.ModelPrice] = []
        self.past_prices: list[ledger.ModelPrice] = []
        self.rows: list[audit.AuditRow] = []
        self.report = audit.AuditReport((audit.ChainState("house", 3, None, "", 1),))
        self.health = metrics.SystemHealth("healthy", ())
        self.checks: tuple[gateway.Check, ...] = ()
        #: The same for auth and the gateway.
        self.settings: tuple[service_settings.ShownSetting, ...] = ()
        self.tiers: tuple[service_settings.TierTerms, ...] = ()
        self.moved: dict[RequestId, ledger.TopUp] = {}

    def add_person(self, username: str, role: UserRole, password: str = "correct horse") -> auth.User:
        user = msgspec.structs.replace(self.add_account(username, password), role=role)
        self.accounts[username] = Account(user, password)
        return user

    def add_member(self, node: NodeId, state: MemberState = MemberState.ACTIVE, name: str = "rig", owner: str = "alice") -> Member:
        until = None if state is MemberState.PENDING else NOW + timedelta(hours=23)
        member = Member(node, Role.WORKER, state, name, owner, {"gpu": "a100"}, NOW, None, until, None, "")
        self.members.append(member)
        return member

    def add_node(self, node: NodeId, role: Role = Role.WORKER, *, alive: bool = True, why_not: str = "") -> gateway.NodeRow:
        service = {Role.WORKER: "inference"}.get(role, role.value)
        models = (ModelName("smollm2"),) if role is Role.WORKER else ()
        slots = 4 if role is Role.WORKER else 0
        row = gateway.NodeRow(
            node, role, service, "punched", alive, alive and not why_not, why_not, models, NOW, "1.0.0", 2, 1, slots, round_trip_ms=23.4
        )
        self.nodes.append(row)
        return row

    def add_ticket(self, ticket_id: str, state: TicketState = TicketState.GOOD) -> TicketRow:
        row = TicketRow(ticket_id, Role.WORKER, state, 5, 1, {"room": "3"}, True, "alice", NOW, NOW + timedelta(hours=1))
        self.tickets.append(row)
        return row

    def add_row(self, sequence: int, action: str = "key.create", result: audit.Result = audit.Result.DONE, target: str = "laptop") -> None:
        act = audit.AuditedAct(
            NOW - timedelta(minutes=1000 - sequence),
            action,
            None,
            UserId(UUID(int=7)),
            result,
            target,
            "192.0.2.7",
            details={"kind": "live"},
        )
        self.rows.append(audit.AuditRow("house", sequence, act, "alice", "ab" * 32))

    def states(self) -> list[MemberState]:
        return [member.state for member in self.members]

    def requests_of(self, method: str) -> list[msgspec.Struct]:
        return [call.request for call in self.calls if call.method == method]

    # --- nodes and tickets

    def _list_nodes(self, request: object, credential: Credential | None) -> object:
        """Answer for auth and the gateway: their methods have the same name."""
        user = self._user(credential)
        if isinstance(request, gateway.ListNodes):
            return gateway.NodeRows(tuple(self.nodes))
        return membership.Members(tuple(each for each in self.members if user.role is UserRole.ADMIN or each.owner == user.username))

    def _approve_node(self, request: membership.ApproveMember, credential: Credential | None) -> Member:
        self._admin(credential)
        return self._change(request.id, state=MemberState.ACTIVE)

    def _set_model_consent(self, request: gateway.ConsentOnWorker, credential: Credential | None) -> gateway.Consented:
        place = next(place for place, row in enumerate(self.nodes) if row.id == request.worker)
        if self.nodes[place].labels.get("locked"):
            raise errors.NotAllowed("ALLOW_MODEL_PULLS decides this on the machine itself", hint="change it there")
        refused = () if request.accepts_models else self.nodes[place].refused_models
        changed = {"accepts_models": request.accepts_models, "refused_models": refused}
        self.nodes[place] = msgspec.structs.replace(self.nodes[place], **changed)
        return gateway.Consented(request.worker, request.accepts_models)

    def _remove_model(self, request: gateway.RemoveFromWorker, credential: Credential | None) -> Nothing:
        place, row = next((place, row) for place, row in enumerate(self.nodes) if row.id == request.worker)
        if request.model not in row.models:
            raise errors.NotFound(f"{request.model} is not there")
        left = tuple(model for model in row.models if model != request.model)
        self.nodes[place] = msgspec.structs.replace(row, models=left, assigned=(), refused_models=(request.model,))
        return Nothing()

    def _revoke_node(self, request: membership.RevokeMember, credential: Credential | None) -> Member:
        self._fresh()
        if request.reason == "refuse":
            raise errors.NotAllowed("an auth service cannot be revoked by an auth service", hint="stop it")
        return self._change(request.id, state=MemberState.REVOKED, reason=request.reason)

    def _change(self, node: str, **changes: object) -> Member:
        for place, member in enumerate(self.members):
            if member.id == node:
                self.members[place] = msgspec.structs.replace(member, **changes)
                return self.members[place]
        raise errors.NotFound("there is no such node", hint="list them")

    def _list_tickets(self, _request: membership.ListTickets, credential: Credential | None) -> membership.Tickets:
        self._user(credential)
        return membership.Tickets(tuple(self.tickets))

    def _create_ticket(self, request: membership.CreateTicket, credential: Credential | None) -> membership.NewTicket:
        user = self._user(credential)
        self._fresh()
        if request.owner == "nobody":
            raise errors.NotFound("there is no user called 'nobody'", hint="check the name")
        row = TicketRow(
            "0123abcd", request.role, TicketState.GOOD, request.uses, 0, dict(request.labels), request.needs_approval,
            request.owner or user.username, NOW, NOW + timedelta(seconds=request.ttl_seconds),
            active_most=request.active_most, networks=request.networks,
        )  # fmt: skip
        self.tickets.append(row)
        return membership.NewTicket("aip_join_secret", row, self.warnings, self.install, self.install_needs)

    def _rotate_ticket(self, request: membership.RotateTicket, credential: Credential | None) -> membership.NewTicket:
        self._admin(credential)
        row = next(row for row in self.tickets if row.id == request.id)
        return membership.NewTicket("aip_join_rotated", msgspec.structs.replace(row, id="fresh"))

    def _revoke_ticket(self, request: membership.RevokeTicket, credential: Credential | None) -> TicketRow:
        self._user(credential)
        for place, row in enumerate(self.tickets):
            if row.id == request.id:
                self.tickets[place] = msgspec.structs.replace(row, state=TicketState.REVOKED)
                return self.tickets[place]
        raise errors.NotFound("there is no such ticket", hint="list them")

    # --- users and organizations

    def _list_users(self, request: auth.ListUsers, credential: Credential | None) -> auth.Users:
        self._admin(credential)
        wanted = request.search.lower()
        users = [account.user for account in self.accounts.values()]
        found = [user for user in users if wanted in f"{user.username}\n{user.email}\n{user.id}".lower()]
        after = next((place + 1 for place, user in enumerate(found) if user.id == request.after), 0)
        return auth.Users(tuple(found[after : after + request.limit]), more=len(found) > after + request.limit)

    def _get_user_called(self, request: auth.GetUserCalled, credential: Credential | None) -> auth.User:
        self._admin(credential)
        return self._named(request.user).user

    def _named(self, text: str) -> Account:
        for account in self.accounts.values():
            if text in (account.user.username, account.user.email, str(account.user.id)):
                return account
        raise errors.NotFound(f"there is no user called {text!r}", hint="check the name")

    def _set_role(self, request: auth.SetRole, credential: Credential | None) -> auth.User:
        return self._set_user(request.user, credential, role=request.role)

    def _set_tier(self, request: auth.SetTier, credential: Credential | None) -> auth.User:
        self._check_plan(request.tier)
        return self._set_user(request.user, credential, tier=request.tier)

    def _set_budget(self, request: auth.SetBudget, credential: Credential | None) -> auth.OwnerBudget:
        for place, team in enumerate(self.organisations):
            if str(team.id) == request.owner:
                self._admin(credential)
                self._fresh()
                self.organisations[place] = msgspec.structs.replace(team, budget=request.budget)
                return auth.OwnerBudget(team.id, team.name, request.budget)
        user = self._set_user(request.owner, credential, budget=request.budget)
        return auth.OwnerBudget(TenantId(user.id), user.username, request.budget)

    def _check_plan(self, name: str) -> None:
        if name not in (*Tier, *(each.tier for each in self.tiers)):
            raise errors.NotFound(f"there is no plan {name!r}", hint="use free")

    def _set_active(self, request: auth.SetActive, credential: Credential | None) -> auth.User:
        if not request.is_active and self._named(request.user).user == self._admin(credential):
            raise errors.BadRequest("you cannot close your own account", hint="another administrator can")
        return self._set_user(request.user, credential, is_active=request.is_active)

    def _remove_mfa(self, request: auth.RemoveMfa, credential: Credential | None) -> auth.User:
        self._admin(credential)
        self._fresh()
        user = self._named(request.user).user
        if user.username not in self.with_factor:
            raise errors.NotFound(f"{user.username} has no second factor", hint="there is nothing to remove")
        self.with_factor.remove(user.username)
        return user

    def _set_user(self, name: str, credential: Credential | None, **changes: object) -> auth.User:
        self._admin(credential)
        self._fresh()
        account = self._named(name)
        account.user = msgspec.structs.replace(account.user, **changes)
        return account.user

    def _list_all_organisations(
        self, request: organizations.ListAllOrganizations, credential: Credential | None
    ) -> organizations.Organizations:
        self._admin(credential)
        found = [team for team in self.organisations if request.search.lower() in f"{team.name}\n{team.id}".lower()]
        after = next((place + 1 for place, team in enumerate(found) if team.id == request.after), 0)
        return organizations.Organizations(tuple(found[after : after + request.limit]), more=len(found) > after + request.limit)

    def _get_organisation(self, request: organizations.GetOrganization, credential: Credential | None) -> organizations.OrganizationDetails:
        """Return a listed organization to administrators, and any other to its members."""
        for team in self.organisations:
            if team.id == request.id:
                self._admin(credential)
                return organizations.OrganizationDetails(team, (), ())
        return super()._get_organisation(request, credential)

    def _set_organisation_tier(self, request: organizations.SetTeamTier, credential: Credential | None) -> organizations.Organization:
        self._admin(credential)
        self._fresh()
        self._check_plan(request.tier)
        for place, team in enumerate(self.organisations):
            if team.id == request.organisation:
                self.organisations[place] = msgspec.structs.replace(team, tier=request.tier)
                return self.organisations[place]
        raise errors.NotFound("there is no such organisation", hint="list them")

    def add_organisation(self, name: str) -> organizations.Organization:
        team = organizations.Organization(TenantId(uuid4()), name, Tier.FREE, NOW, 3)
        self.organisations.append(team)
        return team

    # --- billing

    def _read_account(self, _request: ledger.ReadAccount, credential: Credential | None) -> ledger.Account:
        self._admin(credential)
        topped = sum(each.amount_micro for each in self.moved.values())
        allowance = ledger.Allowance(100_000, 2_500, 0, NOW)
        return ledger.Account(MicroCredits(topped), MicroCredits(500_000), MicroCredits(0), allowance)

    def _top_up(self, request: ledger.TopUp, credential: Credential | None) -> ledger.Account:
        self._admin(credential)
        self._fresh()
        if abs(request.amount_micro) > 10**12:
            raise errors.BadRequest("that is too much", hint="book less")
        assert request.transfer_id is not None
        self.moved[request.transfer_id] = request
        return self._read_account(ledger.ReadAccount(), credential)

    def _get_usage_report(self, request: usage_report.GetUsageReport, credential: Credential | None) -> usage_report.UsageSummary:
        self._admin(credential)
        total = usage_report.UsageSum(1234, 5, 9000, 4000, MicroCredits(2_500_000))
        return usage_report.UsageSummary(total, (), (usage_report.UsageOfModel(ModelName("smollm2"), total),), ())

    def _list_prices(self, request: ledger.ListPrices, _: Credential | None) -> ledger.ModelPrices:
        return ledger.ModelPrices((*self.prices, *self.past_prices) if request.history else tuple(self.prices))

    def _set_price(self, request: ledger.SetPrice, credential: Credential | None) -> ledger.ModelPrices:
        self._admin(credential)
        self._fresh()
        if request.price.input_micro_per_million > 10**13:
            raise errors.BadRequest("the price of input tokens is out of range", hint="at most 10 credits a token")
        self.prices = [*(price for price in self.prices if price.model != request.price.model), request.price]
        return ledger.ModelPrices(tuple(self.prices))

    # --- the audit log

    def _list_audit(self, request: audit.ListAudit, credential: Credential | None) -> audit.AuditRows:
        self._admin(credential)
        if request.actor == "nobody":
            raise errors.NotFound("there is no user called 'nobody'", hint="check the name")
        found = [row for row in reversed(self.rows) if request.before is None or row.act.at < request.before]
        found = [row for row in found if request.result in (None, row.act.result)]
        return audit.AuditRows(tuple(found[: request.limit]))

    def _verify_audit(self, _request: audit.VerifyAudit, credential: Credential | None) -> audit.AuditReport:
        self._admin(credential)
        return self.report

    async def _export_audit(self, _request: audit.ExportAudit, credential: Credential | None) -> AsyncIterator[audit.AuditRow]:
        self._admin(credential)
        for row in self.rows:
            yield row

    # --- health and settings

    def _get_system_health(self, _request: metrics.GetSystemHealth, _: Credential | None) -> metrics.SystemHealth:
        return self.health

    def _get_service_health(self, _request: gateway.GetServiceHealth, _: Credential | None) -> gateway.ServiceHealth:
        return gateway.ServiceHealth("healthy", self.checks, 1, (ModelName("smollm2"),), 3)

    def _get_settings(self, _request: service_settings.GetSettings, credential: Credential | None) -> service_settings.ShownSettings:
        """Answer for both auth and the gateway."""
        self._admin(credential)
        return service_settings.ShownSettings(self.settings)

    def _list_tiers(self, _request: service_settings.ListTiers, credential: Credential | None) -> service_settings.Tiers:
        self._admin(credential)
        return service_settings.Tiers(self.tiers)

    def _get_signing_keys(self, _request: auth.GetSigningKeys, _: Credential | None) -> auth.SigningKeys:
        return auth.SigningKeys((auth.SigningKey("key-one", "x"),))

    def _admin(self, credential: Credential | None) -> auth.User:
        user = self._user(credential)
        if user.role is not UserRole.ADMIN:
            raise errors.NotAllowed("this is for administrators", hint="ask one of them")
        return user

    def _fresh(self) -> None:
        if self.is_stale:
            raise errors.ConfirmationNeeded("confirm that it is you", hint="with your password")


_: type[mesh_calls.MeshCalls] = AdminMesh
