"""The fake mesh, policy part of the gateway. The gateway's real code combines the policies."""

from services.gateway.facts.policies import Policies
from services.gateway.rpc_api import policy_rpc
from shared import errors
from shared.api import auth
from shared.api import configuration as api
from shared.config_documents import PolicyDocument
from shared.types import Credential, UserRole


class FakePolicies:
    """Handlers, mixed into ``FakeMesh``. A test reads and writes the attributes."""

    def __init__(self) -> None:
        super().__init__()
        #: Name -> version and document.
        self.policies: dict[str, tuple[int, PolicyDocument | None]] = {}
        #: Names of policies that users other than administrators may change.
        self.changeable: set[str] = set()

    def _get_policy(self, request: api.GetPolicy, credential: Credential | None) -> api.PolicyState:
        assert request.name is not None
        version, policy = self.policies.get(request.name, (0, None))
        may_change = request.name in self.changeable or self._role(credential) is UserRole.ADMIN
        return api.PolicyState(request.name, version, policy, may_change)

    def _set_policy(self, request: api.SetPolicy, credential: Credential | None) -> api.PolicyState:
        before = self._get_policy(api.GetPolicy(request.name), credential)
        if not before.may_change:
            raise errors.NotAllowed("you may not change the policy", hint="ask an owner")
        if request.expected_version != before.version:
            raise errors.AlreadyExists("the policy has changed", hint="read it again")
        self.policies[request.name] = before.version + 1, request.policy
        return self._get_policy(api.GetPolicy(request.name), credential)

    def _explain_policy(self, request: api.ExplainPolicy, _: Credential | None) -> api.PolicyExplanation:
        documents = {name: policy for name, (_, policy) in self.policies.items() if policy is not None}
        return api.PolicyExplanation(policy_rpc.explain(Policies(documents).find(request.organization, request.key)))

    def _role(self, credential: Credential | None) -> UserRole:
        user: auth.User = self._user(credential)  # type: ignore[attr-defined]  # defined in FakeAccounts
        return user.role
