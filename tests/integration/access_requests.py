"""The requests of the access matrix: for each method and route, a request that reaches its access check and does no harm if admitted."""

import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import msgspec

from shared.api import (
    accounts,
    alerts,
    audit,
    auth,
    billing,
    business,
    configuration,
    declared,
    deployments,
    embedding,
    gateway,
    inference,
    ledger,
    membership,
    metrics,
    model_copies,
    model_search,
    model_trust,
    models,
    notices,
    organizations,
    servers,
    service_settings,
    usage_report,
)
from shared.api.gateway import InferenceRequest
from shared.api.generation import ChatMessage
from shared.api.method import Method, StreamMethod
from shared.config_documents import ConfigKind, DeploymentDocument, ServerKind
from shared.types import Credential, KeyId, MicroCredits, ModelName, NodeId, RequestId, Role, TenantId, Tier, UserId, UserRole
from tests import feature_parts

AnyMethod = Method[Any, Any] | StreamMethod[Any, Any, Any]
NOBODY = UserId(UUID(int=404))
#: A key can't give more permissions than it has. A key that creates keys may have no other permission.
_MAKERS_OWN = ("key:write",)
NO_TEAM = TenantId(UUID(int=405))
NO_MODEL = ModelName("no-such-model")
NO_INVOICE = "INV-2026-000000"


@dataclass(frozen=True, slots=True, kw_only=True)
class Things:
    """What a caller owns, by the ids that requests use."""

    user_id: UserId
    tenant: TenantId
    team: TenantId
    request_id: RequestId
    session: str
    key: str


def methods() -> dict[str, AnyMethod]:
    """Return every method of the API, by name."""
    return {each.name: each for each in declared.methods()}


def _account() -> auth.RegisterUser:
    name = f"matrix-{secrets.token_hex(6)}"
    return auth.RegisterUser(auth.UserData(name, f"{name}@example.org", secrets.token_urlsafe(12)))


def _report(tenant: TenantId | None = None) -> usage_report.GetUsageReport:
    now = datetime.now(UTC)
    return usage_report.GetUsageReport(now - timedelta(days=1), now, tenant_id=tenant)


_PRICE = ledger.ModelPrice(NO_MODEL, MicroCredits(-1), MicroCredits(-1))

#: Method -> a request that names no one else's objects, if the defaults of its fields are not enough.
_OF_FEATURES = feature_parts.modules("access_requests")

REQUESTS: Mapping[str, Callable[[], msgspec.Struct]] = {
    "auth.registerUser": _account,
    "auth.loginUser": lambda: auth.LoginUser(auth.Credentials("x", "both", "of@example.org")),
    "auth.refreshSession": lambda: auth.RefreshSession("none"),
    "auth.resumeSession": lambda: auth.ResumeSession("none"),
    "auth.logoutUser": lambda: auth.LogoutUser("none"),
    "auth.confirmLogin": lambda: auth.ConfirmLogin("wrong"),
    "auth.redeemLoginLink": lambda: auth.RedeemLoginLink("none"),
    "auth.pollDeviceLogin": lambda: auth.PollDeviceLogin("none"),
    "auth.findDeviceLogin": lambda: auth.FindDeviceLogin("none"),
    "auth.decideDeviceLogin": lambda: auth.DecideDeviceLogin("none", approve=False),
    "auth.endSession": lambda: accounts.EndSession("none"),
    "auth.changePassword": lambda: accounts.ChangePassword("x"),
    "auth.requestPasswordReset": lambda: accounts.RequestPasswordReset("nobody"),
    "auth.resetPassword": lambda: accounts.ResetPassword("none", "x"),
    "auth.verifyAddress": lambda: accounts.VerifyAddress("none"),
    "auth.setPreferences": lambda: accounts.SetPreferences(accounts.Preferences()),
    "auth.enableMfa": lambda: accounts.EnableMfa("wrong"),
    "auth.disableMfa": lambda: accounts.DisableMfa("wrong"),
    "auth.beginOidc": lambda: accounts.BeginOidc("http://127.0.0.1/none"),
    "auth.loginByIap": lambda: accounts.LoginByIap("none"),
    "auth.finishOidc": lambda: accounts.FinishOidc("none", "none"),
    "auth.leaveOidc": lambda: accounts.LeaveOidc("none", "http://127.0.0.1/none"),
    "auth.removeOidcLink": lambda: accounts.RemoveOidcLink("none", "none"),
    "auth.generateApiKey": lambda: auth.GenerateApiKey("made", days=1, bounds=auth.KeyBounds(scopes=_MAKERS_OWN)),
    "auth.rotateApiKey": lambda: auth.RotateApiKey("none"),
    "auth.renameApiKey": lambda: auth.RenameApiKey("none", "other"),
    "auth.revokeApiKey": lambda: auth.RevokeApiKey("none"),
    "auth.validateApiKey": lambda: auth.ValidateApiKey(Credential("none")),
    "auth.identify": lambda: auth.Identify(Credential("none")),
    "auth.identifyOwner": lambda: auth.IdentifyOwner(NOBODY),
    "auth.identifyPerson": lambda: auth.IdentifyPerson(KeyId(NOBODY), "nobody@example.org"),
    "auth.findEndedKeys": lambda: auth.FindEndedKeys(()),
    "auth.createOrganisation": lambda: organizations.CreateOrganization("Another"),
    "auth.getOrganisation": lambda: organizations.GetOrganization(NO_TEAM),
    "auth.renameOrganisation": lambda: organizations.RenameOrganization(NO_TEAM, "Other"),
    "auth.switchOrganisation": lambda: accounts.SwitchTeam(NO_TEAM),
    "auth.inviteMember": lambda: organizations.InviteMember(NO_TEAM, "somebody@example.org"),
    "auth.withdrawInvitation": lambda: organizations.WithdrawInvitation(NO_TEAM, "none"),
    "auth.readInvitation": lambda: organizations.ReadInvitation("none"),
    "auth.acceptInvitation": lambda: organizations.AcceptInvitation("none"),
    "auth.inviteColleague": lambda: organizations.InviteColleague("nowhere"),
    "auth.withdrawColleagueInvitation": lambda: organizations.WithdrawColleagueInvitation("none"),
    "auth.readColleagueInvitation": lambda: organizations.ReadColleagueInvitation("none"),
    "auth.acceptColleagueInvitation": lambda: organizations.AcceptColleagueInvitation("none"),
    "auth.confirmRegistration": lambda: service_settings.ConfirmRegistration(is_open=False),
    "auth.setOrganisationRole": lambda: organizations.SetTeamRole(NO_TEAM, NOBODY, organizations.TeamRole.MEMBER),
    "auth.removeOrganisationMember": lambda: organizations.RemoveTeamMember(NO_TEAM, NOBODY),
    "auth.setBudget": lambda: auth.SetBudget("nobody-at-all"),
    "auth.setTier": lambda: auth.SetTier("nobody-at-all", Tier.FREE),
    "auth.setRole": lambda: auth.SetRole("nobody-at-all", UserRole.USER),
    "auth.setActive": lambda: auth.SetActive("nobody-at-all", is_active=True),
    "gateway.applyConfig": lambda: configuration.ApplyConfig("default_model: smollm2", dry_run=True),
    "gateway.rollbackConfig": lambda: configuration.RollbackConfig(ConfigKind.PLAN, "free", 1, dry_run=True),
    "gateway.importEnvironment": lambda: configuration.ImportEnvironment(dry_run=True),
    "gateway.tryRoute": lambda: configuration.TryRoute("assistant"),
    "gateway.startRollout": lambda: configuration.StartRollout("assistant", "next"),
    "gateway.changeRollout": lambda: configuration.ChangeRollout("assistant", configuration.RolloutAction.PAUSE),
    "gateway.getRollout": lambda: configuration.GetRollout("assistant"),
    "gateway.setPolicy": lambda: configuration.SetPolicy(f"organization:{NO_TEAM}", None),
    "gateway.testGuard": lambda *_: configuration.GuardText("card 4111 1111 1111 1111"),
    "auth.removeMfa": lambda: auth.RemoveMfa("nobody-at-all"),
    "auth.getUser": lambda: auth.GetUser(NOBODY),
    "auth.getUserCalled": lambda: auth.GetUserCalled("nobody-at-all"),
    "auth.nameUsers": lambda: business.NameUsers((UserId(uuid4()),)),
    "auth.setOrganisationTier": lambda: organizations.SetTeamTier(NO_TEAM, Tier.FREE),
    "auth.listAudit": lambda: audit.ListAudit(limit=1),
    "auth.exportAudit": lambda: audit.ExportAudit("none"),
    "auth.verifyAudit": lambda: audit.VerifyAudit("none"),
    "auth.recordActs": lambda: audit.RecordActs(()),
    "auth.enrollNode": lambda: membership.EnrollNode("none", b"", b""),
    "auth.checkTicket": lambda: membership.CheckTicket("none"),
    "auth.rotateTicket": lambda: membership.RotateTicket("none"),
    "auth.createTicket": lambda: membership.CreateTicket(Role.WORKER),
    "auth.revokeTicket": lambda: membership.RevokeTicket("none"),
    "auth.approveNode": lambda: membership.ApproveMember("none"),
    "auth.revokeNode": lambda: membership.RevokeMember("none"),
    "gateway.processInferenceRequest": lambda: gateway.ProcessInferenceRequest(InferenceRequest(prompt="hi", model=ModelName("echo"))),
    "gateway.serveHttp": lambda: gateway.HttpRequest("GET", "/v1/models"),
    "gateway.cancelInference": lambda: gateway.CancelInference("nothing-runs-under-it"),
    "gateway.rerank": lambda: embedding.RequestRanking(embedding.RankingRequest("hi", ("hi",), ModelName("echo"))),
    "gateway.embed": lambda: embedding.RequestEmbeddings(embedding.EmbeddingRequest(("hi",), ModelName("echo"))),
    "gateway.giveUpPool": lambda: gateway.GiveUpPool("no-such-pool", "none", 0),
    "gateway.loadModel": lambda: gateway.LoadOnWorker(NO_MODEL),
    "gateway.unloadModel": lambda: gateway.UnloadOnWorkers(NO_MODEL),
    "gateway.planModel": lambda: model_search.PlanModel("no-such-model"),
    "gateway.signModelVersion": lambda: model_trust.SignModelVersion(NO_MODEL, 1, b"{}"),
    "gateway.readModelTrust": lambda: model_trust.ReadModelTrust(NO_MODEL),
    "gateway.takeTrust": lambda: model_trust.TakeTrust(()),
    "gateway.takeServers": lambda: servers.TakeServers(b"none", -1),
    "inference.tryServer": lambda: servers.OpenServer("rack", "http://127.0.0.1:1/v1", ServerKind.OPENAI),
    "gateway.pullModel": lambda: gateway.PullOnWorkers("https://example.org/x.gguf", NodeId("nobody-at-all")),
    "gateway.deployModel": lambda: deployments.DeployModel(NO_MODEL, DeploymentDocument("no-such-source", nodes=("nobody-at-all",))),
    "gateway.undeployModel": lambda: deployments.UndeployModel(NO_MODEL),
    "gateway.readBlob": lambda: model_copies.ReadBlob("sha256:" + "0" * 64, 0, 1),
    "gateway.findModelPeers": lambda: model_copies.FindModelPeers("sha256:" + "0" * 64),
    "gateway.advisePull": lambda: model_copies.AdvisePull(NO_MODEL, "hf:none/none"),
    "gateway.leaseBlocks": lambda: model_copies.LeaseBlocks("sha256:" + "0" * 64, 1),
    "gateway.eraseStored": lambda: gateway.EraseStored(NO_TEAM, "none"),
    "gateway.findModelBlobs": lambda: models.FindModelBlobs(()),
    "gateway.completeModelVersion": lambda: models.CompleteModelVersion(NO_MODEL, b"{}"),
    "gateway.promoteModel": lambda: models.PromoteModel(NO_MODEL),
    "gateway.rollbackModel": lambda: models.RollbackModel(NO_MODEL),
    "gateway.withdrawModel": lambda: models.WithdrawModel(NO_MODEL),
    "gateway.retireModelVersion": lambda: models.RetireModelVersion(NO_MODEL, 1),
    "gateway.revokeModelVersion": lambda: models.RevokeModelVersion(NO_MODEL, 1, "no reason"),
    "gateway.deleteModelVersion": lambda: models.DeleteModelVersion(NO_MODEL, 1),
    "gateway.removeModel": lambda: gateway.RemoveFromWorker(NodeId("nobody-at-all"), NO_MODEL),
    "gateway.setModelConsent": lambda: gateway.ConsentOnWorker(NodeId("nobody-at-all"), accepts_models=False),
    "gateway.readUsage": lambda: gateway.ReadUsage(NO_TEAM),
    "gateway.dropStoredItems": lambda: gateway.DropStoredItems(NO_TEAM),
    # Changes nothing: the gateway only reads its clock.
    "gateway.getUsageReport": _report,
    "auth.countNewAccounts": lambda: business.CountNewAccounts(date(2026, 3, 1), date(2026, 3, 2)),
    "gateway.getBusinessReport": lambda: business.GetBusinessReport(date(2026, 3, 1), date(2026, 3, 2)),
    "gateway.giveFeedback": lambda: usage_report.GiveFeedback(RequestId(uuid4()), 1),
    "gateway.topUp": lambda: ledger.TopUp("nobody-at-all", MicroCredits(1)),
    "gateway.setPlan": lambda: billing.SetPlan("no-such-plan"),
    "gateway.orderTopUp": lambda: billing.OrderTopUp("0", RequestId(uuid4())),
    "gateway.getInvoice": lambda: billing.GetInvoice(NO_INVOICE),
    "gateway.payInvoice": lambda: billing.PayInvoice(NO_INVOICE, "none"),
    "gateway.voidInvoice": lambda: billing.VoidInvoice(NO_INVOICE, "none"),
    "gateway.adoptPayment": lambda: billing.AdoptPayment("cs_none"),
    "auth.describeMachine": lambda: membership.DescribeMachine(NodeId("U" + "A" * 55)),
    "auth.describeAccount": lambda: billing.DescribeAccount(NO_TEAM),
    "auth.applyPlan": lambda: billing.ApplyPlan(NO_TEAM, "free"),
    "auth.addNotice": lambda: notices.AddNotice(NO_TEAM, "none", notices.PaymentLate(), "USD"),
    "gateway.setPrice": lambda: ledger.SetPrice(_PRICE),
    "gateway.revertRequest": lambda: ledger.RevertRequest(RequestId(uuid4())),
    "gateway.pardonNode": lambda: gateway.PardonNode("nobody-at-all"),
    "inference.processPrompt": lambda: inference.ProcessPrompt("hi", inference.ModelConfig(model=NO_MODEL), RequestId(uuid4())),
    "inference.moderate": lambda: inference.Moderate(NO_MODEL, ("hi",), RequestId(uuid4())),
    "inference.tokenize": lambda: inference.Tokenize(NO_MODEL, (ChatMessage("user", "hi"),)),
    "inference.detokenize": lambda: inference.Detokenize(NO_MODEL, b""),
    "inference.renderChat": lambda: inference.RenderChat(NO_MODEL, (ChatMessage("user", "hi"),)),
    "inference.rerank": lambda: embedding.Embed(NO_MODEL, ("hi",), RequestId(uuid4()), query="hi"),
    "inference.embed": lambda: embedding.Embed(NO_MODEL, ("hi",), RequestId(uuid4())),
    "inference.getModelStatus": lambda: inference.GetModelStatus(NO_MODEL),
    "inference.loadModel": lambda: inference.LoadModel(NO_MODEL),
    "inference.unloadModel": lambda: inference.UnloadModel(NO_MODEL),
    "inference.pullModel": lambda: inference.PullModel("nothing"),
    "inference.ensureModel": lambda: inference.EnsureModel(NO_MODEL, "no-such-source"),
    "inference.removeModel": lambda: inference.RemoveModel(NO_MODEL),
    "inference.planModels": lambda: inference.PlanModels(()),
    "inference.setModelConsent": lambda: inference.SetModelConsent(NOBODY, accepts_models=False),
    "inference.readReceipts": lambda: inference.ReadReceipts(()),
    "metrics.recordMetric": lambda: metrics.RecordMetric("no_such_metric", 1),
    "metrics.recordMetrics": lambda: metrics.RecordMetrics(()),
    "metrics.getHistory": lambda: metrics.GetHistory(
        ("ai_platform_node_up",), datetime.now(UTC) - timedelta(hours=1), datetime.now(UTC) + timedelta(hours=1)
    ),
    "metrics.getEnergy": lambda: metrics.GetEnergy(datetime.now(UTC) - timedelta(days=1), datetime.now(UTC)),
    "metrics.getTrace": lambda: metrics.GetTrace("f" * 32),
    "metrics.silenceAlerts": lambda: alerts.SilenceAlerts(1),
    "metrics.endSilence": lambda: alerts.EndSilence("there is none"),
} | {name: made for part in _OF_FEATURES for name, made in part.REQUESTS.items()}


def request_of(method: AnyMethod) -> msgspec.Struct:
    """Return a request that names no one else's objects."""
    return REQUESTS.get(method.name, method.request)()


#: Method -> a request that names someone's objects. Together they use every request field that can name any.
NAMING: Mapping[str, Callable[[Things], msgspec.Struct]] = {
    "auth.generateApiKey": lambda whose: auth.GenerateApiKey("made", whose.user_id, days=1, bounds=auth.KeyBounds(scopes=_MAKERS_OWN)),
    "auth.listApiKeys": lambda whose: auth.ListApiKeys(whose.user_id),
    "auth.revokeApiKey": lambda whose: auth.RevokeApiKey(whose.key),
    "auth.renameApiKey": lambda whose: auth.RenameApiKey(whose.key, "renamed"),
    "auth.rotateApiKey": lambda whose: auth.RotateApiKey(whose.key),
    "auth.endSession": lambda whose: accounts.EndSession(whose.session),
    "auth.getOrganisation": lambda whose: organizations.GetOrganization(whose.team),
    "auth.renameOrganisation": lambda whose: organizations.RenameOrganization(whose.team, "Theirs"),
    "auth.switchOrganisation": lambda whose: accounts.SwitchTeam(whose.team),
    "auth.inviteMember": lambda whose: organizations.InviteMember(whose.team, "somebody@example.org"),
    "auth.withdrawInvitation": lambda whose: organizations.WithdrawInvitation(whose.team, "none"),
    "auth.setOrganisationRole": lambda whose: organizations.SetTeamRole(whose.team, NOBODY, organizations.TeamRole.MEMBER),
    "auth.removeOrganisationMember": lambda whose: organizations.RemoveTeamMember(whose.team, whose.user_id),
    "auth.getUserUsage": lambda whose: usage_report.GetUserUsage(whose.user_id),
    "gateway.getUserQuota": lambda whose: gateway.GetUserQuota(whose.user_id),
    "gateway.getUsageReport": lambda whose: _report(whose.tenant),
    "gateway.listRequests": lambda whose: usage_report.ListRequests(tenant_id=whose.tenant),
    "gateway.giveFeedback": lambda whose: usage_report.GiveFeedback(whose.request_id, 1),
    "gateway.readAccount": lambda whose: ledger.ReadAccount(whose.user_id),
}

_CHAT = [{"role": "user", "content": "hi"}]
#: Route -> the JSON body of a call; None for no body.
BODIES: Mapping[str, Callable[[], Any]] = {
    "HEAD /": lambda: None,
    "GET /": lambda: None,
    "GET /openapi.json": lambda: None,
    "GET /docs": lambda: None,
    "GET /.well-known/jwks.json": lambda: None,
    "POST /api/auth/register": lambda: {**msgspec.to_builtins(_account())["userData"]},
    "POST /api/auth/login": lambda: {"username": "both", "email": "of@example.org", "password": "x"},
    "POST /api/auth/refresh": lambda: {"session_token": "none"},
    "POST /api/auth/logout": lambda: {"session_token": "none"},
    "POST /api/auth/device": dict,
    "POST /api/auth/device/token": lambda: {"device_code": "none"},
    "POST /api/auth/confirm": lambda: {"code": "wrong"},
    "POST /api/auth/api-keys": lambda: {"name": "made", "days": 1, "scopes": list(_MAKERS_OWN)},
    "GET /api/auth/api-keys": lambda: None,
    "DELETE /api/auth/api-keys/{key}": lambda: None,
    "GET /api/usage": lambda: None,
    "GET /api/quota": lambda: None,
    "GET /api/plans": lambda: None,
    "GET /api/billing": lambda: None,
    "POST /api/billing/plan": lambda: {"plan": "no-such-plan"},
    "POST /api/billing/top-ups": lambda: {"amount": "0", "order_id": str(uuid4())},
    "POST /api/billing/portal": dict,
    "GET /api/billing/invoices": lambda: None,
    "GET /api/billing/invoices/{number}": lambda: None,
    "POST /api/billing/payments": lambda: {"number": NO_INVOICE, "reference": "none"},
    "POST /api/billing/credits": lambda: {"user": "nobody-at-all", "amount": "1"},
    "POST /webhooks/stripe": dict,
    "POST /webhooks/paddle": dict,
    "GET /api/requests": lambda: None,
    "POST /api/feedback": lambda: {"request_id": str(uuid4()), "rating": 1},
    "HEAD /api/models/blobs/{digest}": lambda: None,
    "GET /api/models/blobs/{digest}": lambda: None,
    "PATCH /api/models/blobs/{digest}": dict,
    "GET /api/models/{model}/versions": lambda: None,
    "POST /api/models/{model}/versions": dict,
    "POST /api/models/{model}/promote": dict,
    "POST /api/models/{model}/rollback": dict,
    "POST /api/models/{model}/withdraw": dict,
    "POST /api/models/{model}/retire": lambda: {"version": 1},
    "POST /api/models/{model}/revoke": lambda: {"version": 1, "reason": "none"},
    "POST /api/models/{model}/sign": lambda: {"version": 1, "signature": "bm9uZQ=="},
    "GET /api/models/{model}/trust": lambda: None,
    "POST /api/inference": lambda: {"prompt": "hi", "model": "echo"},
    "POST /api/infer": lambda: {"payload": "hi", "model": "echo"},
    "DELETE /api/inference": lambda: None,
    "POST /v1/chat/completions": lambda: {"messages": _CHAT, "model": "echo"},
    "POST /v1/completions": lambda: {"prompt": "hi", "model": "echo"},
    "POST /v1/responses": lambda: {"input": "hi", "model": "echo"},
    "POST /v1/responses/{response}": dict,
    "DELETE /v1/responses/{response}": lambda: None,
    "POST /v1/responses/input_tokens": lambda: {"input": "hi", "model": "echo"},
    "POST /v1/messages": lambda: {"messages": _CHAT, "model": "echo", "max_tokens": 5},
    "POST /v1/messages/count_tokens": lambda: {"messages": _CHAT, "model": "echo"},
    "POST /infill": lambda: {"input_prefix": "hi", "input_suffix": "there", "model": "echo"},
    "POST /v1/rerank": lambda: {"query": "hi", "documents": ["hi"], "model": "echo"},
    "POST /v1/embeddings": lambda: {"input": "hi", "model": "echo"},
    "POST /v1/moderations": lambda: {"input": "hi"},
    "POST /v1/tokenize": lambda: {"prompt": "hi", "model": "echo"},
    "POST /v1/detokenize": lambda: {"tokens": [1], "model": "echo"},
    "POST /v1/apply-template": lambda: {"messages": _CHAT, "model": "echo"},
    "GET /api/models": lambda: None,
    "GET /api/models/search": lambda: None,
    "GET /v1/models": lambda: None,
    "GET /v1/models/{model}": lambda: None,
} | {name: made for part in _OF_FEATURES for name, made in part.BODIES.items()}
#: Route -> a body that names someone's objects.
NAMING_BODIES: Mapping[str, Callable[[Things], Any]] = {
    "POST /api/auth/api-keys": lambda whose: {"name": "made", "days": 1, "user_id": str(whose.user_id), "scopes": list(_MAKERS_OWN)},
    "DELETE /api/auth/api-keys/{key}": lambda whose: None,
    "POST /api/feedback": lambda whose: {"request_id": str(whose.request_id), "rating": 1},
}
