"""A mesh in which everything that users and nodes can name has a hostile name."""

from dataclasses import dataclass, field
from datetime import timedelta
from uuid import uuid4

import msgspec

from shared.api import accounts, alerts, audit, auth, gateway, ledger, metrics, service_settings
from shared.api import configuration as api
from shared.api.billing import Customer, Party, PlanState
from shared.api.membership import MemberState
from shared.api.organizations import Invitation, TeamRole
from shared.api.servers import ServerRow
from shared.api.usage_report import GetUsageReport, UsageOfKey, UsageOfModel, UsageSum, UsageSummary
from shared.config_documents import PolicyDocument, ServerKind, Sticky
from shared.types import Credential, MicroCredits, ModelName, NodeId, RequestId, RequestStatus, Role, TenantId, UserRole
from tests import feature_parts
from tests.services.web.fake_billing import PRO
from tests.services.web.fake_mesh import NOW, Account
from tests.services.web.fake_usage import FakeUsage
from tests.services.web.pages.admin.admin_mesh import AdminMesh
from tests.services.web.pages.admin.fake_routes import TARGETS, rollout

SCRIPT = "</title></textarea>\"'><script>alert(1)</script><img src=x onerror=alert(2)>"
#: Reverses all text after it, because the override is never closed.
RTL = "\u202egnp\u2067.exe"
LONG = "W" * 200
EMOJI = "👩‍👩‍👧‍👦🏴‍☠️é̂̂"
TEMPLATE = "{{7*7}}{% raw %}${7*7}<%= 7*7 %>#{7*7}"
NAMES = {"script": SCRIPT, "rtl": RTL, "long": LONG, "emoji": EMOJI, "template": TEMPLATE}

#: 56 characters of base32, like a node's key.
ACTIVE, PENDING = NodeId("U" + "ACTIVE" + "A" * 49), NodeId("U" + "PENDING" + "A" * 48)
#: The code of an invitation to the mesh, which every browser in these tests has opened.
COLLEAGUE = "code-of-a-colleague"


class HostileMesh(AdminMesh):
    """The administrators' mesh, with a usage report for every user."""

    def _get_usage_report(self, request: GetUsageReport, credential: Credential | None) -> UsageSummary:
        return FakeUsage._get_usage_report(self, request, credential)

    def give_role(self, session: str, role: UserRole) -> None:
        user = msgspec.structs.replace(self.sessions[session], role=role)
        self.sessions[session] = self.accounts[user.username].user = user


@dataclass(frozen=True, slots=True)
class SeededDb:
    """A mesh in which everything has the same name, except what the pages' paths need."""

    mesh: HostileMesh
    name: str
    #: The session of an administrator with this name.
    session: str
    paths: dict[str, str] = field(default_factory=dict)


def build(mesh: HostileMesh, name: str) -> SeededDb:
    me = _account(mesh, name, UserRole.ADMIN)
    token = mesh.add_session(me)
    key = mesh.add_key(me, name)
    bounds = auth.KeyBounds((), (ModelName(name),), (name,))
    mesh.keys[-1] = msgspec.structs.replace(key, bounds=bounds)
    paths = {"key_id": str(key.id), "user_id": str(me.id), "name": "no_worker"}
    paths |= _nodes(mesh, name) | {"team": str(_organisations(mesh, name, me)), "team_id": str(mesh.organisations[0].id)}
    paths["level"] = f"organization-{paths['team']}"
    mesh.policies[f"organization:{paths['team']}"] = 1, PolicyDocument(models=(name,))
    _usage(mesh, name, key)
    mesh.acting[token] = TenantId(next(iter(mesh.teams)))
    mesh.add_other_session(name, address=name)
    mesh.provider_links.append(accounts.OidcLink(name, name, name, NOW))
    mesh.options = msgspec.structs.replace(mesh.options, oidc_name=name)
    mesh.preferences = accounts.Preferences(ModelName(name))
    for number, result in enumerate(audit.Result):
        act = audit.AuditedAct(NOW, "key.create", None, me.id, result, name, name, name, {name: name, "name": name})
        mesh.rows.append(audit.AuditRow("house", number + 1, act, name, "ab" * 32))
    mesh.settings = (service_settings.ShownSetting("SOME_SETTING", name, name, "What it is"),)
    mesh.checks = (gateway.Check(name, False, name),)
    for state in ("firing", "pending", "over"):
        alert = mesh.add_alert(state, state=state)
        # Severity and advice come from the rule.
        mesh.alerts[-1] = msgspec.structs.replace(alert, name=name, labels={name: name}, summary=name, description=name)
    mesh.routes.append(
        api.RouteState(name, 2, Sticky.USER, tuple(msgspec.structs.replace(target, name=name, model=name) for target in TARGETS))
    )
    mesh.add_route("named", name, f"{name}{name}")
    mesh.routes[-1] = msgspec.structs.replace(mesh.routes[0], name="named")
    mesh.rollouts = [rollout(name, plan=api.RolloutPlan(name, name), reason=name), rollout("named", plan=api.RolloutPlan(name, name))]
    paths |= {"route": "named", "rollout": str(mesh.rollouts[0].id)}
    named = Party(name, (name,))
    invoice = mesh.add_invoice(text=name, seller=named, customer=named, tax_name=name, reference=name)
    paths |= {"number": invoice.number}
    mesh.plan, mesh.next_plan = msgspec.structs.replace(PRO, name=name, limits=(name,)), name
    mesh.plans = mesh.plan, msgspec.structs.replace(PRO, name=f"{name}{name}")
    mesh.customers = (Customer(invoice.owner, name, name, PlanState.ACTIVE, name, NOW),)
    mesh.servers = (ServerRow(name, name, ServerKind.VLLM, True, (ModelName(name),), 1, name),)
    for part in feature_parts.modules("web.hostile"):
        paths |= part.seed(mesh, name)
    mesh.silences.append(alerts.Silence(name, name, {name: name}, NOW, name, name))
    mesh.keep_everything(model=name, gpu=name)
    mesh.devices.append(auth.WaitingDeviceLogin("BCDF-GHJK", name, name, NOW))
    paths["code"] = "BCDF-GHJK"
    mesh.health = metrics.SystemHealth("down", (metrics.ComponentHealth(name, "worker", "down", NOW, name),))
    return SeededDb(mesh, name, token, paths)


def _account(mesh: HostileMesh, name: str, role: UserRole) -> auth.User:
    user = msgspec.structs.replace(mesh.add_account(name, "correct horse", f"{name}@example.com"), role=role)
    mesh.accounts[name] = Account(user, "correct horse")
    return user


def _nodes(mesh: HostileMesh, name: str) -> dict[str, str]:
    for node, state in ((ACTIVE, MemberState.ACTIVE), (PENDING, MemberState.PENDING)):
        member = mesh.add_member(node, state, name, name)
        mesh.members[-1] = msgspec.structs.replace(member, labels={name: name}, reason=name)
        row = mesh.add_node(node, why_not=name)
        mesh.nodes[-1] = msgspec.structs.replace(row, models=(ModelName(name),), labels={name: name}, version=name)
    ticket = mesh.add_ticket("abcd")
    mesh.tickets[-1] = msgspec.structs.replace(ticket, owner=name, labels={name: name})
    mesh.add_node(NodeId("U" + "GATEWAY" + "A" * 48), Role.GATEWAY, why_not=name)
    return {"node_id": str(PENDING), "worker_id": str(ACTIVE), "ticket_id": "abcd"}


def _organisations(mesh: HostileMesh, name: str, me: auth.User) -> TenantId:
    team = mesh.add_team(name, me, _account(mesh, f"{name}2", UserRole.USER))
    invited = Invitation(uuid4().hex, f"{name}@example.com", TeamRole.MEMBER, name, NOW, NOW + timedelta(days=7))
    mesh.teams[team] = msgspec.structs.replace(mesh.teams[team], invitations=(invited,))
    mesh.add_organisation(name)
    made = mesh.add_colleague(COLLEAGUE, f"{name}@example.com", UserRole.ADMIN, name)
    mesh.setup = msgspec.structs.replace(mesh.setup, public_url=f"http://{name}", has_mail_server=True)
    mesh.colleagues[COLLEAGUE] = msgspec.structs.replace(made, invited_by=name)
    return team


def _usage(mesh: HostileMesh, name: str, key: auth.ApiKey) -> None:
    sums, model = UsageSum(4000, 7, 10**9, 10**8, MicroCredits(10**12), 9, 400, 84_000), ModelName(name)
    mesh.used_models, mesh.used_keys = (UsageOfModel(model, sums, 3, 1),), (UsageOfKey(key.id, sums),)
    for status, code in ((RequestStatus.SUCCESS, None), (RequestStatus.ERROR, name)):
        mesh.log(NOW, status, code, model=name, key_id=key.id, id=RequestId(uuid4()))
    mesh.served = (gateway.ServedModel(model, 1, 32_768, aliases=(model,)),)
    mesh.prices = [ledger.ModelPrice(model, MicroCredits(1), MicroCredits(1), MicroCredits(1), MicroCredits(1))]
