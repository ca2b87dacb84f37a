"""Holds who may call each RPC method and each HTTP route, and decides whether a caller may. Pure.

``Method.callers`` lists the node roles that may call a method; this table says what the user behind the call must be allowed to do. A
program does not start if one of its methods has no row. Whether a caller may touch the particular data is checked by the handler
(``subject_of``), and again by PostgreSQL's row-level security.
"""

from collections.abc import Mapping
from functools import lru_cache
from ipaddress import ip_network

from shared import addresses, errors, features
from shared.access_rules import NODE, AccessRule
from shared.access_rules import person as _person
from shared.api.auth import Principal, Step
from shared.types import Permission, Role, UserRole

#: How recently a user must have shown a password or code before a sensitive action (SECURITY.md §5). Does not apply to keys.
FRESH_SECONDS = 300
IS_SENSITIVE = "this action is sensitive, and you logged in a while ago"


_OWN = frozenset({Permission.READ_USAGE, Permission.WRITE_KEYS, Permission.WRITE_ACCOUNT})

ROLES: Mapping[UserRole, frozenset[Permission]] = {
    UserRole.USER: _OWN | {Permission.INFER},
    UserRole.NODE_OWNER: _OWN | {Permission.INFER, Permission.OWN_NODES},
    UserRole.DEVELOPER: _OWN | {Permission.INFER, Permission.READ_MODELS, Permission.WRITE_MODELS},
    UserRole.ADMIN: frozenset({Permission.EVERYTHING}),
}


_NODE = NODE
_KNOWN = _person()
#: Web shows it to visitors.
_PUBLIC = _person(unless={Role.WEB})
_HALFWAY = _person(halfway=True)
_ACCOUNT = _person(Permission.WRITE_ACCOUNT)
_ACCOUNT_FRESH = _person(Permission.WRITE_ACCOUNT, fresh=True)
_KEYS = _person(Permission.WRITE_KEYS)
_KEYS_FRESH = _person(Permission.WRITE_KEYS, fresh=True)
_INFER = _person(Permission.INFER)
_USAGE = _person(Permission.READ_USAGE)
_MODELS = _person(Permission.WRITE_MODELS)
_MODELS_FRESH = _person(Permission.WRITE_MODELS, fresh=True)
_READ_MODELS = _person(Permission.READ_MODELS, Permission.WRITE_MODELS)
_NODES = _person(Permission.OWN_NODES)
_ADMIN = _person(Permission.EVERYTHING)
_ADMIN_FRESH = _person(Permission.EVERYTHING, fresh=True)
_WATCHING = _person(Permission.EVERYTHING, unless={Role.OPERATOR})
_PEOPLE = frozenset({Role.CLIENT, Role.WEB, Role.GATEWAY, Role.OPERATOR})

_OWN_METHODS = {
    # --- accounts and sessions
    "auth.registerUser": _NODE,
    "auth.loginUser": _NODE,
    "auth.refreshSession": _NODE,
    "auth.resumeSession": _NODE,
    "auth.logoutUser": _NODE,
    "auth.confirmLogin": _HALFWAY,
    "auth.confirmAgain": _KNOWN,
    "auth.createLoginLink": _ACCOUNT,
    "auth.redeemLoginLink": _NODE,
    "auth.beginDeviceLogin": _NODE,
    "auth.pollDeviceLogin": _NODE,
    "auth.findDeviceLogin": _ACCOUNT,
    "auth.decideDeviceLogin": _ACCOUNT_FRESH,
    "auth.listSessions": _ACCOUNT,
    "auth.endSession": _ACCOUNT,
    "auth.getAccount": _KNOWN,
    "auth.changeProfile": _ACCOUNT,
    "auth.changePassword": _ACCOUNT_FRESH,
    "auth.requestPasswordReset": _NODE,
    "auth.resetPassword": _NODE,
    "auth.sendVerification": _ACCOUNT,
    "auth.verifyAddress": _NODE,
    "auth.setPreferences": _ACCOUNT,
    # --- second factor
    "auth.beginMfa": _person(Permission.WRITE_ACCOUNT, fresh=True, halfway=True),
    "auth.enableMfa": _person(Permission.WRITE_ACCOUNT, fresh=True, halfway=True),
    "auth.disableMfa": _ACCOUNT_FRESH,
    "auth.renewRecoveryCodes": _ACCOUNT_FRESH,
    # --- OpenID
    "auth.beginOidc": _NODE,
    "auth.finishOidc": _NODE,
    "auth.loginByIap": _NODE,
    "auth.leaveOidc": _NODE,
    "auth.getSignInOptions": _NODE,
    "auth.listOidcLinks": _ACCOUNT,
    "auth.removeOidcLink": _ACCOUNT_FRESH,
    # --- API keys
    "auth.generateApiKey": _KEYS_FRESH,
    "auth.rotateApiKey": _KEYS_FRESH,
    "auth.renameApiKey": _KEYS,
    "auth.listApiKeys": _KEYS,
    "auth.revokeApiKey": _KEYS,
    "auth.findEndedKeys": _NODE,
    "auth.validateApiKey": _NODE,
    "auth.identify": _NODE,
    "auth.identifyOwner": _NODE,
    "auth.identifyPerson": _NODE,
    # --- organizations
    "auth.createOrganisation": _ACCOUNT,
    "auth.listOrganisations": _ACCOUNT,
    "auth.getOrganisation": _ACCOUNT,
    "auth.renameOrganisation": _ACCOUNT,
    "auth.switchOrganisation": _ACCOUNT,
    "auth.inviteMember": _ACCOUNT_FRESH,
    "auth.withdrawInvitation": _ACCOUNT,
    "auth.readInvitation": _ACCOUNT,
    "auth.acceptInvitation": _ACCOUNT,
    "auth.setOrganisationRole": _ACCOUNT_FRESH,
    "auth.removeOrganisationMember": _ACCOUNT,
    "auth.readColleagueInvitation": _NODE,
    "auth.acceptColleagueInvitation": _ACCOUNT,
    # --- own data
    "auth.exportAccount": _ACCOUNT_FRESH,
    "auth.requestErasure": _ACCOUNT_FRESH,
    "auth.cancelErasure": _ACCOUNT,
    "auth.getUserUsage": _USAGE,
    # --- administration
    "auth.followRecoveryLog": _NODE,
    "auth.getSettings": _ADMIN,
    "gateway.followRecoveryLog": _NODE,
    "gateway.getSettings": _ADMIN,
    "gateway.listTiers": _person(Permission.EVERYTHING, unless={Role.AUTH}),
    "gateway.applyConfig": _ADMIN_FRESH,
    "gateway.rollbackConfig": _ADMIN_FRESH,
    "gateway.importEnvironment": _ADMIN_FRESH,
    "gateway.exportConfig": _ADMIN,
    "gateway.listConfigVersions": _ADMIN,
    "gateway.listRoutes": _ADMIN,
    "gateway.tryRoute": _ADMIN,
    "gateway.startRollout": _ADMIN_FRESH,
    "gateway.changeRollout": _ADMIN_FRESH,
    "gateway.listRollouts": _ADMIN,
    "gateway.getRollout": _ADMIN,
    "gateway.getPolicy": _KNOWN,
    "gateway.setPolicy": _ACCOUNT_FRESH,
    "gateway.explainPolicy": _KNOWN,
    "gateway.testGuard": _KNOWN,
    "auth.setTier": _ADMIN_FRESH,
    "auth.describeAccount": _NODE,
    "auth.applyPlan": _NODE,
    "auth.addNotice": _NODE,
    "auth.setBudget": _ADMIN_FRESH,
    "auth.setRole": _ADMIN_FRESH,
    "auth.setActive": _ADMIN_FRESH,
    "auth.removeMfa": _ADMIN_FRESH,
    "auth.getUser": _ADMIN,
    "auth.getUserCalled": _ADMIN,
    "auth.listUsers": _ADMIN,
    "auth.nameUsers": _ADMIN,
    "auth.countNewAccounts": _ADMIN,
    "auth.listAllOrganisations": _ADMIN,
    "auth.setOrganisationTier": _ADMIN_FRESH,
    "auth.getSetup": _ADMIN,
    "auth.dismissSetup": _ADMIN,
    "auth.confirmRegistration": _ADMIN,
    "auth.sendTestMail": _ADMIN,
    "auth.inviteColleague": _ADMIN_FRESH,
    "auth.listColleagueInvitations": _ADMIN,
    "auth.withdrawColleagueInvitation": _ADMIN,
    "auth.rotateSigningKeys": _ADMIN_FRESH,
    "auth.reviewAccess": _ADMIN,
    "auth.listAudit": _ADMIN,
    "auth.exportAudit": _ADMIN,
    "auth.verifyAudit": _ADMIN,
    "auth.listDeferredItems": _ADMIN,
    "auth.retryDeferredItems": _ADMIN,
    # --- for the other services
    "auth.getSigningKeys": _NODE,
    "auth.recordActs": _NODE,
    "auth.watchChanges": _NODE,
    # --- nodes
    "auth.describeMachine": _NODE,
    "auth.enrollNode": _NODE,
    "auth.renewCertificate": _NODE,
    "auth.addSibling": _NODE,
    "auth.leaveNode": _NODE,
    "auth.checkTicket": _NODE,
    "auth.createTicket": _person(Permission.OWN_NODES, fresh=True),
    "auth.listTickets": _NODES,
    "auth.revokeTicket": _NODES,
    "auth.listNodes": _NODES,
    "auth.listLoginRefusals": _ADMIN,
    "auth.rotateTicket": _ADMIN,
    "auth.approveNode": _ADMIN,
    "auth.revokeNode": _NODES,
    # --- the gateway
    "gateway.processInferenceRequest": _INFER,
    # Each of its routes has a row, too.
    "gateway.serveHttp": _KNOWN,
    "gateway.cancelInference": _INFER,
    "gateway.embed": _INFER,
    "gateway.rerank": _INFER,
    "gateway.getServiceHealth": _NODE,
    "gateway.getUserQuota": _USAGE,
    "gateway.listModels": _person(Permission.INFER, Permission.READ_MODELS, unless=_PEOPLE),
    "gateway.loadModel": _MODELS,
    "gateway.unloadModel": _MODELS,
    "gateway.pullModel": _ADMIN,
    "gateway.readBlob": _NODE,
    "gateway.findModelPeers": _NODE,
    "gateway.leaseBlocks": _NODE,
    "gateway.advisePull": _NODE,
    "gateway.listDeployments": _person(),
    "gateway.deployModel": _ADMIN,
    "gateway.undeployModel": _ADMIN,
    "gateway.searchModels": _person(Permission.INFER, Permission.READ_MODELS),
    "gateway.planModel": _person(Permission.INFER, Permission.READ_MODELS),
    "gateway.refreshCatalog": _ADMIN,
    # The handlers check that a model is the caller's, or the mesh's and the caller an administrator.
    "gateway.findModelBlobs": _MODELS,
    "gateway.completeModelVersion": _MODELS,
    "gateway.listModelVersions": _READ_MODELS,
    "gateway.promoteModel": _MODELS,
    "gateway.rollbackModel": _MODELS,
    "gateway.withdrawModel": _MODELS,
    "gateway.retireModelVersion": _MODELS,
    "gateway.revokeModelVersion": _MODELS_FRESH,
    "gateway.deleteModelVersion": _MODELS_FRESH,
    "gateway.signModelVersion": _MODELS,
    "gateway.readModelTrust": _READ_MODELS,
    "gateway.takeTrust": _NODE,
    "gateway.listServers": _ADMIN,
    # The gateway checks the worker's certificate.
    "gateway.takeServers": _NODE,
    # The worker checks that the caller owns it, or is an administrator.
    "gateway.setModelConsent": _NODES,
    "gateway.removeModel": _NODES,
    "gateway.listNodes": _person(unless={Role.METRICS, Role.OPERATOR}),
    "gateway.giveUpPool": _NODE,
    "gateway.pardonNode": _ADMIN_FRESH,
    "gateway.readUsage": _NODE,
    "gateway.listPlans": _PUBLIC,
    "gateway.readBilling": _USAGE,
    "gateway.setPlan": _ACCOUNT_FRESH,
    "gateway.orderTopUp": _ACCOUNT_FRESH,
    "gateway.openPortal": _ACCOUNT_FRESH,
    "gateway.listInvoices": _USAGE,
    "gateway.getInvoice": _USAGE,
    "gateway.payInvoice": _ADMIN_FRESH,
    "gateway.voidInvoice": _ADMIN_FRESH,
    "gateway.adoptPayment": _ADMIN_FRESH,
    "gateway.listCustomers": _ADMIN,
    "gateway.readRevenue": _ADMIN,
    "gateway.dropStoredItems": _NODE,
    "gateway.eraseStored": _NODE,
    "gateway.getUsageReport": _USAGE,
    "gateway.getBusinessReport": _ADMIN,
    "gateway.listRequests": _USAGE,
    "gateway.exportRequests": _USAGE,
    "gateway.giveFeedback": _INFER,
    "gateway.readAccount": _USAGE,
    "gateway.topUp": _ADMIN_FRESH,
    "gateway.setPrice": _ADMIN_FRESH,
    "gateway.listPrices": _PUBLIC,
    "gateway.revertRequest": _ADMIN_FRESH,
    "gateway.listDeferredItems": _ADMIN,
    "gateway.retryDeferredItems": _ADMIN,
    "gateway.verifyLedger": _person(Permission.EVERYTHING, unless={Role.METRICS}),
    # --- workers, metrics and every node: no user involved
    "inference.processPrompt": _NODE,
    "inference.embed": _NODE,
    "inference.rerank": _NODE,
    "inference.moderate": _NODE,
    "inference.tokenize": _NODE,
    "inference.detokenize": _NODE,
    "inference.renderChat": _NODE,
    "inference.listAvailableModels": _NODE,
    "inference.getModelStatus": _NODE,
    "inference.loadModel": _NODE,
    "inference.unloadModel": _NODE,
    "inference.pullModel": _NODE,
    "inference.ensureModel": _NODE,
    "inference.removeModel": _NODE,
    "inference.planModels": _NODE,
    "inference.setModelConsent": _NODE,
    "inference.readReceipts": _NODE,
    "inference.tryServer": _NODE,
    "metrics.getEnergy": _NODE,
    "metrics.recordMetric": _NODE,
    "metrics.recordMetrics": _NODE,
    "metrics.getMetrics": _NODE,
    "metrics.getSystemHealth": _person(Permission.EVERYTHING, unless={Role.GATEWAY, Role.WEB, Role.OPERATOR}),
    "metrics.listAlerts": _WATCHING,
    "metrics.silenceAlerts": _WATCHING,
    "metrics.endSilence": _WATCHING,
    "metrics.getTrace": _WATCHING,
    "metrics.getHistory": _WATCHING,
    "node.readRevocations": _NODE,
    "node.readMetrics": _NODE,
    "node.readHealth": _NODE,
    "node.readSpans": _NODE,
    "node.readLogs": _NODE,
}
METHODS: Mapping[str, AccessRule] = features.merged(_OWN_METHODS, "access", "METHODS")


#: The gateway's routes. Each needs the same permissions as the method that it calls.
_OWN_ROUTES = {
    "HEAD /": _NODE,
    "GET /": _NODE,
    "GET /openapi.json": _NODE,
    "GET /docs": _NODE,
    "GET /.well-known/jwks.json": _NODE,
    # Signed by the payment provider.
    "POST /webhooks/stripe": _NODE,
    "POST /webhooks/paddle": _NODE,
    "POST /api/auth/register": METHODS["auth.registerUser"],
    "POST /api/auth/login": METHODS["auth.loginUser"],
    "POST /api/auth/device": METHODS["auth.beginDeviceLogin"],
    "POST /api/auth/device/token": METHODS["auth.pollDeviceLogin"],
    "POST /api/auth/refresh": METHODS["auth.refreshSession"],
    "POST /api/auth/logout": METHODS["auth.logoutUser"],
    "POST /api/auth/confirm": METHODS["auth.confirmLogin"],
    "POST /api/auth/api-keys": METHODS["auth.generateApiKey"],
    "GET /api/auth/api-keys": METHODS["auth.listApiKeys"],
    "DELETE /api/auth/api-keys/{key}": METHODS["auth.revokeApiKey"],
    "GET /api/usage": METHODS["auth.getUserUsage"],
    "GET /api/quota": METHODS["gateway.getUserQuota"],
    "GET /api/plans": METHODS["gateway.listPlans"],
    "GET /api/billing": METHODS["gateway.readBilling"],
    "POST /api/billing/plan": METHODS["gateway.setPlan"],
    "POST /api/billing/top-ups": METHODS["gateway.orderTopUp"],
    "POST /api/billing/portal": METHODS["gateway.openPortal"],
    "GET /api/billing/invoices": METHODS["gateway.listInvoices"],
    "GET /api/billing/invoices/{number}": METHODS["gateway.getInvoice"],
    "POST /api/billing/payments": METHODS["gateway.payInvoice"],
    "POST /api/billing/credits": METHODS["gateway.topUp"],
    "GET /api/requests": METHODS["gateway.listRequests"],
    "POST /api/feedback": METHODS["gateway.giveFeedback"],
    "HEAD /api/models/blobs/{digest}": METHODS["gateway.findModelBlobs"],
    "GET /api/models/blobs/{digest}": METHODS["gateway.listModelVersions"],
    "PATCH /api/models/blobs/{digest}": METHODS["gateway.findModelBlobs"],
    "GET /api/models/{model}/versions": METHODS["gateway.listModelVersions"],
    "POST /api/models/{model}/versions": METHODS["gateway.completeModelVersion"],
    "POST /api/models/{model}/promote": METHODS["gateway.promoteModel"],
    "POST /api/models/{model}/rollback": METHODS["gateway.rollbackModel"],
    "POST /api/models/{model}/withdraw": METHODS["gateway.withdrawModel"],
    "POST /api/models/{model}/retire": METHODS["gateway.retireModelVersion"],
    "POST /api/models/{model}/revoke": METHODS["gateway.revokeModelVersion"],
    "POST /api/models/{model}/sign": METHODS["gateway.signModelVersion"],
    "GET /api/models/{model}/trust": METHODS["gateway.readModelTrust"],
    "POST /api/inference": METHODS["gateway.processInferenceRequest"],
    "POST /api/infer": METHODS["gateway.processInferenceRequest"],
    "DELETE /api/inference": METHODS["gateway.cancelInference"],
    "POST /v1/chat/completions": METHODS["gateway.processInferenceRequest"],
    "POST /v1/completions": METHODS["gateway.processInferenceRequest"],
    "POST /v1/responses": METHODS["gateway.processInferenceRequest"],
    "POST /v1/responses/{response}": METHODS["gateway.processInferenceRequest"],
    "DELETE /v1/responses/{response}": METHODS["gateway.processInferenceRequest"],
    "POST /v1/messages": METHODS["gateway.processInferenceRequest"],
    "POST /v1/messages/count_tokens": METHODS["gateway.processInferenceRequest"],
    "POST /v1/responses/input_tokens": METHODS["gateway.processInferenceRequest"],
    "POST /v1/embeddings": METHODS["gateway.embed"],
    "POST /infill": METHODS["gateway.processInferenceRequest"],
    "POST /v1/rerank": METHODS["gateway.rerank"],
    "POST /v1/moderations": METHODS["gateway.processInferenceRequest"],
    "POST /v1/tokenize": METHODS["gateway.processInferenceRequest"],
    "POST /v1/detokenize": METHODS["gateway.processInferenceRequest"],
    "POST /v1/apply-template": METHODS["gateway.processInferenceRequest"],
    "GET /api/models": _person(Permission.INFER, Permission.READ_MODELS),
    "GET /api/models/search": METHODS["gateway.searchModels"],
    "GET /v1/models": _person(Permission.INFER, Permission.READ_MODELS),
    "GET /v1/models/{model}": _person(Permission.INFER, Permission.READ_MODELS),
}
ROUTES: Mapping[str, AccessRule] = features.merged(_OWN_ROUTES, "access", "ROUTES")


#: POST to this and a method's name calls the method over HTTP.
RPC_PATH = "/rpc/"


def of_route(verb: str, path: str) -> AccessRule:
    """Raises ValueError for a route without a row."""
    if path.startswith(RPC_PATH):
        return of_method(path.removeprefix(RPC_PATH))
    access = ROUTES.get(f"{verb} {path}")
    if access is None:
        raise ValueError(f"{verb} {path} has no row in shared/access_table.py: say who may use it")
    return access


def of_method(name: str) -> AccessRule:
    """Raises ValueError for a method without a row."""
    access = METHODS.get(name)
    if access is None:
        raise ValueError(f"{name} has no row in shared/access_table.py: say who may call it")
    return access


def may(caller: Principal, permission: Permission) -> bool:
    """Return whether the caller has this permission."""
    return bool(permissions_of(caller.role, caller.scopes) & {permission, Permission.EVERYTHING})


@lru_cache(maxsize=1024)
def permissions_of(role: UserRole, scopes: tuple[str, ...] | None) -> frozenset[Permission]:
    """Return what a key with these scopes may do now; None stands for a login. A scope that the owner has lost grants nothing."""
    granted = ROLES[role]
    if scopes is None:
        return granted
    wanted = frozenset(Permission(scope) for scope in scopes)
    if Permission.EVERYTHING in wanted:
        return granted
    return wanted if Permission.EVERYTHING in granted else wanted & granted


def check(access: AccessRule, caller: Principal, now: float) -> None:
    """``now`` in seconds since 1970. Raises NotAllowed, SecondFactorNeeded or ConfirmationNeeded."""
    if caller.step is not Step.DONE and not access.halfway:
        raise _step_missing(caller.step)
    if access.needs and not any(may(caller, permission) for permission in access.needs):
        raise errors.NotAllowed(_lacking(access, caller), hint=_who_can(access, caller))
    if access.fresh and caller.confirmed_at is not None and now - caller.confirmed_at > FRESH_SECONDS:
        raise errors.ConfirmationNeeded(IS_SENSITIVE, hint="confirm your password or a code, then try again")


def check_network(caller: Principal, address: str | None) -> None:
    """Raises NotAllowed if the caller's key is bound to other networks, or if the caller's address is unknown."""
    if not caller.networks:
        return
    if address is None:
        raise errors.NotAllowed("this key is bound to networks, but this connection shows no address", hint="use the HTTP API with it")
    here = addresses.parse(address)
    if here is not None and any(here in ip_network(network) for network in caller.networks):
        return
    raise errors.NotAllowed(f"this key may not be used from {address[:60]}", hint="use it from its networks, or create another key")


def _step_missing(step: Step) -> errors.AimeshError:
    if step is Step.ENTER_CODE:
        return errors.SecondFactorNeeded("the login lacks its code", hint="send the six digits of your authenticator app to confirmLogin")
    return errors.SecondFactorNeeded("administrators need a second factor", hint="log in on the web page and set it up; it takes a minute")


def _lacking(access: AccessRule, caller: Principal) -> str:
    wanted = " or ".join(sorted(access.needs))
    if access.needs == {Permission.EVERYTHING} and caller.role is not UserRole.ADMIN:
        return f"{caller.username} is no administrator"
    if caller.key_id is not None:
        return f"the key {caller.key_name!r} lacks the scope {wanted}"
    return f"{caller.username} may not do this: it needs {wanted}"


def _who_can(access: AccessRule, caller: Principal) -> str:
    if caller.key_id is not None and ROLES[caller.role] & (access.needs | {Permission.EVERYTHING}):
        return "use a key with this scope, or log in"
    return "ask an administrator of this mesh to do it"
