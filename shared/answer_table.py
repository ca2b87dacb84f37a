"""Holds whom each RPC method answers that needs no user. Pure.

A node's role alone says little: anyone may own a worker or be a client.

A program does not start if such a method has no row here, or if nodes may call it that its row leaves out.
"""

from collections.abc import Mapping, Set
from enum import StrEnum

from shared import features
from shared.types import Role


class Answers(StrEnum):
    #: Everyone alike: nothing of it is anyone's own.
    EVERYONE = "everyone alike"
    #: Callers that show what the answer is for: a password, a token, a code, a ticket, a signature.
    BEARER = "callers that show a password, token, code or ticket"
    #: Services and tools of the operator.
    SERVICES = "services of the operator"
    #: The calling node, about itself.
    CALLER = "the calling node, about itself"
    #: Workers whose certificate says that they are the operator's.
    OPERATORS_WORKERS = "workers of the operator"
    #: Workers, about the versions of models that they may read: see ``model_readers`` of the gateway.
    READERS = "workers that may read the version"
    #: Workers that name a deployed model and its public source.
    DEPLOYED = "workers that name a deployed model and its public source"


#: Roles of nodes that people own.
_PEOPLES = frozenset({Role.WORKER, Role.CLIENT, Role.NEWCOMER})

_OWN: Mapping[str, str] = {
    "auth.registerUser": Answers.EVERYONE,
    "auth.loginUser": Answers.BEARER,
    "auth.refreshSession": Answers.BEARER,
    "auth.resumeSession": Answers.BEARER,
    "auth.logoutUser": Answers.BEARER,
    "auth.redeemLoginLink": Answers.BEARER,
    "auth.beginDeviceLogin": Answers.EVERYONE,
    "auth.pollDeviceLogin": Answers.BEARER,
    "auth.requestPasswordReset": Answers.EVERYONE,
    "auth.resetPassword": Answers.BEARER,
    "auth.verifyAddress": Answers.BEARER,
    "auth.beginOidc": Answers.EVERYONE,
    "auth.finishOidc": Answers.BEARER,
    "auth.loginByIap": Answers.BEARER,
    "auth.leaveOidc": Answers.BEARER,
    "auth.getSignInOptions": Answers.EVERYONE,
    "auth.readColleagueInvitation": Answers.BEARER,
    "auth.validateApiKey": Answers.BEARER,
    "auth.identify": Answers.BEARER,
    "auth.identifyOwner": Answers.SERVICES,
    "auth.identifyPerson": Answers.SERVICES,
    "auth.findEndedKeys": Answers.SERVICES,
    "auth.getSigningKeys": Answers.SERVICES,
    "auth.watchChanges": Answers.SERVICES,
    "auth.recordActs": Answers.SERVICES,
    "auth.describeAccount": Answers.SERVICES,
    "auth.describeMachine": Answers.SERVICES,
    "auth.checkTicket": Answers.SERVICES,
    "auth.applyPlan": Answers.SERVICES,
    "auth.addNotice": Answers.SERVICES,
    "auth.followRecoveryLog": Answers.SERVICES,
    "auth.enrollNode": Answers.BEARER,
    "auth.renewCertificate": Answers.CALLER,
    "auth.addSibling": Answers.CALLER,
    "auth.leaveNode": Answers.CALLER,
    "gateway.followRecoveryLog": Answers.SERVICES,
    "gateway.getServiceHealth": Answers.EVERYONE,
    "gateway.eraseStored": Answers.SERVICES,
    "gateway.dropStoredItems": Answers.SERVICES,
    "gateway.readUsage": Answers.SERVICES,
    "gateway.giveUpPool": Answers.SERVICES,
    "gateway.readBlob": Answers.READERS,
    "gateway.takeTrust": Answers.READERS,
    "gateway.findModelPeers": Answers.READERS,
    "gateway.leaseBlocks": Answers.READERS,
    "gateway.advisePull": Answers.DEPLOYED,
    "gateway.takeServers": Answers.OPERATORS_WORKERS,
    "inference.processPrompt": Answers.SERVICES,
    "inference.embed": Answers.SERVICES,
    "inference.rerank": Answers.SERVICES,
    "inference.moderate": Answers.SERVICES,
    "inference.tokenize": Answers.SERVICES,
    "inference.detokenize": Answers.SERVICES,
    "inference.renderChat": Answers.SERVICES,
    "inference.listAvailableModels": Answers.SERVICES,
    "inference.getModelStatus": Answers.SERVICES,
    "inference.loadModel": Answers.SERVICES,
    "inference.unloadModel": Answers.SERVICES,
    "inference.pullModel": Answers.SERVICES,
    "inference.ensureModel": Answers.SERVICES,
    "inference.removeModel": Answers.SERVICES,
    "inference.planModels": Answers.SERVICES,
    "inference.setModelConsent": Answers.SERVICES,
    "inference.readReceipts": Answers.SERVICES,
    "inference.tryServer": Answers.SERVICES,
    "metrics.getEnergy": Answers.SERVICES,
    "metrics.recordMetric": Answers.CALLER,
    "metrics.recordMetrics": Answers.CALLER,
    "metrics.getMetrics": Answers.SERVICES,
    "node.readRevocations": Answers.EVERYONE,
    "node.readMetrics": Answers.SERVICES,
    "node.readHealth": Answers.SERVICES,
    "node.readSpans": Answers.SERVICES,
    "node.readLogs": Answers.SERVICES,
}
METHODS: Mapping[str, Answers] = {name: Answers(words) for name, words in features.merged(_OWN, "access", "ANSWERS").items()}


def check(name: str, callers: Set[Role]) -> None:
    """Raises ValueError for a method without a row, and for one of services that people's nodes may call."""
    answers = METHODS.get(name)
    if answers is None:
        raise ValueError(f"{name} needs no user and has no row in shared/answer_table.py: say whom it answers")
    if answers is Answers.SERVICES and (others := callers & _PEOPLES):
        raise ValueError(f"{name} answers only {answers}, but its callers include {', '.join(sorted(others))}")
