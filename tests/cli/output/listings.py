"""Every listing command, with a mesh that answers it; names contain wide characters, formulas and control characters."""

from datetime import UTC, datetime, timedelta
from uuid import UUID

import msgspec

from cli.doctor.findings import DoctorFinding
from shared.api import (
    accounts,
    alerts,
    audit,
    auth,
    business,
    configuration,
    gateway,
    ledger,
    membership,
    metrics,
    organizations,
    usage_report,
)
from shared.api.business import ActiveUsers, BusinessReport, BusinessRow, BusinessSum, NewAccounts
from shared.config_documents import ConfigKind, Sticky
from shared.spans import Span, SpanKind
from shared.types import MicroCredits, ModelName, NodeId, Role, Tier, UserRole
from stack.status_overview import StatusRow
from tests.cli.fake_mesh import FakeMesh
from tests.cli.test_admin_mesh import NODE, member, row
from tests.cli.test_listings import LEFT, USER, WORKER

#: A name that a user may choose.
NAME = "=漢字\x1b[31m"
#: The same name in CSV and in a table.
CSV_NAME, SHOWN_NAME = "'=漢字[31m", "=漢字[31m"
NOW = datetime.now(UTC)
USER_ROW = auth.User(USER, NAME, "alice@example.org", UserRole.USER, Tier.PRO, True, NOW)
KEY = auth.ApiKey(UUID(int=3), USER, NAME, "aip_live_abc…wxyz", is_active=True, created_at=NOW)  # type: ignore[arg-type]  # a KeyId
ALERT = alerts.Alert(
    id="a1b2c3d4e5f6", name="certificate_expiring", severity="warning", labels={"node": NAME}, state="firing",
    since=NOW - timedelta(minutes=5), ended=None, value=3, summary=f"The certificate of {NAME} expires in 3 days", description="",
    runbook="docs/runbooks/certificate_expiring.md", silenced=False,
)  # fmt: skip
SPAN = Span("a" * 32, "b" * 16, "", NAME, SpanKind.INTERNAL, 10**18, 10**18 + 5, "", {})
ACT = audit.AuditedAct(NOW, "key.create", None, USER, target=NAME, details={"name": "n"})
PLAN = configuration.RolloutPlan("next", "local")
ROLLOUT = configuration.RolloutSummary(UUID(int=4), NAME, PLAN, configuration.RolloutState.RUNNING, 10.0, 0, NOW, 40, NAME, NOW, None)
STATUS = StatusRow(NAME, "ready", True, NOW, 17, 0, "http://127.0.0.1:3000", "")
FINDING = DoctorFinding("gateway", True, NAME)

#: Command -> its arguments, and its first row's id or name, which every format except YAML, CSV and JSON must show.
LISTINGS: dict[tuple[str, ...], tuple[tuple[str, ...], str]] = {
    ("models",): ((), SHOWN_NAME),
    ("models", "list"): ((), SHOWN_NAME),
    ("models", "show"): ((), SHOWN_NAME),
    ("trace",): (("a" * 32,), SHOWN_NAME),
    ("profile", "list"): ((), "lab"),
    ("keys", "list"): ((), SHOWN_NAME),
    ("usage",): ((), SHOWN_NAME),
    ("quota",): ((), "requests per hour"),
    ("nodes",): ((), WORKER.id[:9]),
    ("doctor",): ((), SHOWN_NAME),
    ("alerts",): ((), ALERT.id),
    ("alerts", "list"): (("--all",), ALERT.id),
    ("scale", "status"): ((), SHOWN_NAME),
    ("scale", "history"): ((), SHOWN_NAME),
    ("report", "cost"): (("--by", "model"), SHOWN_NAME),
    ("report", "usage"): (("--by", "model"), SHOWN_NAME),
    ("admin", "access-review"): ((), SHOWN_NAME),
    ("admin", "audit", "list"): ((), "key.create"),
    ("admin", "config", "show"): ((), SHOWN_NAME),
    ("admin", "config", "history"): ((), SHOWN_NAME),
    ("admin", "routes", "list"): ((), SHOWN_NAME),
    ("admin", "routes", "show"): ((NAME,), SHOWN_NAME),
    ("admin", "routes", "try"): ((NAME,), SHOWN_NAME),
    ("admin", "rollouts", "list"): ((), SHOWN_NAME),
    ("admin", "rollouts", "show"): ((NAME,), SHOWN_NAME),
    ("policy", "explain"): ((), SHOWN_NAME),
    ("admin", "invitations", "list"): ((), "0123abcd"),
    ("admin", "nodes", "list"): ((), NODE[:9]),
    ("admin", "nodes", "refusals"): ((), NODE[:9]),
    ("admin", "prices", "list"): ((), SHOWN_NAME),
    ("admin", "tickets", "list"): ((), "0123456789abcdef"),
    ("admin", "users", "list"): ((), SHOWN_NAME),
    ("stack", "status"): ((), SHOWN_NAME),
}


def answer_all(mesh: FakeMesh) -> None:
    model = ModelName(NAME)
    days = (usage_report.DailyUsage(NOW.date(), KEY.id, 4, 50, MicroCredits(7_500), NAME),)
    mesh.answer(gateway.list_models, gateway.ServedModels((gateway.ServedModel(model, 2, 2048, aliases=("llama3",)),)))
    mesh.answer(gateway.list_nodes, gateway.NodeRows((msgspec.structs.replace(WORKER, models=(model,)),)))
    mesh.answer(gateway.get_user_quota, LEFT)
    mesh.answer(usage_report.get_user_usage, usage_report.UserUsage(USER, 12, 150, days, MicroCredits(7_500)))
    mesh.answer(auth.list_api_keys, auth.ApiKeys((KEY,)))
    mesh.answer(auth.list_users, auth.Users((USER_ROW,)))
    mesh.answer(metrics.get_trace, metrics.FoundTrace((metrics.TracedSpan("gateway", "node", SPAN),)))
    mesh.answer(alerts.list_alerts, alerts.Alerts((ALERT,), (alerts.Silence("1", "", {}, NOW, "ann", NAME),)))
    pool = metrics.PoolScaling(pool=NAME, ready=2, wanted=3, reason=NAME, as_of=NOW, fresh=True, max=5)
    call = metrics.ScaleCallEntry(NAME, NOW, 2, 3, NAME, metrics.ScaleCallState.FAILED, 2, NAME)
    mesh.answer(metrics.get_scaling, metrics.Scaling((pool,), (call,)))
    mesh.answer(audit.list_audit, audit.AuditRows((audit.AuditRow("house", 1, ACT, "alice", "0", False, "0", "0", "0"),)))
    refusal = membership.LoginRefusal(NODE, "10.0.0.9", NAME, datetime(2026, 11, 25, tzinfo=UTC))
    mesh.answer(membership.list_login_refusals, membership.LoginRefusals((refusal,)))
    mesh.answer(membership.list_members, membership.Members((member(name=NAME),)))
    version = configuration.ConfigVersion(ConfigKind.ROUTE, NAME, 3, 17, None, False, "applied", NAME, NAME, NOW, is_current=True)
    mesh.answer(configuration.list_config_versions, configuration.ConfigVersions((version,)))
    mesh.answer(configuration.export_config, configuration.ExportedConfig(17, ""))
    target = configuration.RouteTargetState(NAME, "smollm2", 99.5, 1, 0)
    mesh.answer(configuration.list_routes, configuration.RouteStates((configuration.RouteState(NAME, 3, Sticky.USER, (target,)),)))
    tried = configuration.TriedTarget(NAME, "smollm2", 995, None, "not_served")
    mesh.answer(configuration.try_route, configuration.TriedRoute(NAME, 3, (tried,), 5))
    mesh.answer(configuration.list_rollouts, configuration.Rollouts((ROLLOUT,)))
    condition = configuration.RolloutCondition("errors", 0.01, 1, 40, 2, 300, 0.01, 0.02, 1.5, NAME)
    arms = configuration.RolloutArm(NAME, 40, 100, 200, 40.0, 7, 2_000.0), configuration.RolloutArm(NAME, 300, None, None, None, 0, 0.0)
    changed = configuration.RolloutEvent(NOW, configuration.RolloutState.RUNNING, 10.0, NAME, "ann")
    mesh.answer(configuration.get_rollout, configuration.RolloutDetails(ROLLOUT, arms, (condition,), (changed,), 300))
    mesh.answer(configuration.explain_policy, configuration.PolicyExplanation((configuration.PolicyRule("models", NAME, ("mesh",)),)))
    invited = organizations.ColleagueInvitation("0123abcd4567", NAME, UserRole.USER, "ann", NOW, NOW + timedelta(days=7))
    mesh.answer(organizations.list_colleague_invitations, organizations.ColleagueInvitations((invited,)))
    mesh.answer(membership.list_tickets, membership.Tickets((row(),)))
    mesh.answer(ledger.list_prices, ledger.ModelPrices((ledger.ModelPrice(model, MicroCredits(1), MicroCredits(2)),)))
    mesh.answer(
        business.get_business_report,
        BusinessReport(BusinessSum(), (BusinessRow(NAME, BusinessSum()),), False, MicroCredits(0), ActiveUsers(1, 2, 3, 4)),
    )
    mesh.answer(business.count_new_accounts, NewAccounts(()))
    mesh.answer(
        accounts.review_access,
        accounts.AccessReview(
            (accounts.StaleKey("k-1", NAME, "bob", "live", NOW, None, "never used"),),
            (accounts.StaleUser(NAME, "user", NOW, None, "not seen"),),
            (accounts.StaleNode(NodeId(NODE), NAME, Role.WORKER, "", NOW, "not seen"),),
        ),
    )
