"""Authorization before the handlers: who is admitted, which refusals are reported, and no undeclared method is served."""

from dataclasses import dataclass
from uuid import UUID

import pytest

from shared import answer_table, errors
from shared.api import auth, gateway, metrics, model_copies
from shared.api.auth import Principal
from shared.rpc.authorization import Authorizer, check_declared
from shared.types import Credential, Role, Tier, UserId, UserRole

KEY, BODY_KEY = Credential("aip_live_in_the_call"), Credential("aip_live_in_the_body")


@dataclass
class Visit:
    credential: Credential | None = None
    caller_role: Role = Role.CLIENT


class ApiClient:
    """Knows one user by either key, and records the credentials that it was asked about."""

    def __init__(self, role: UserRole = UserRole.USER, networks: tuple[str, ...] = ()) -> None:
        self.person = Principal(UserId(UUID(int=1)), "ada", role, Tier.FREE, networks=networks)
        self.asked: list[Credential | None] = []
        self.refusals: list[tuple[str, Principal | None, str]] = []
        self.gate = Authorizer(self._identify, self._refused, clock=lambda: 0.0)

    async def _identify(self, credential: Credential | None) -> Principal:
        self.asked.append(credential)
        if credential is None:
            raise errors.NotAuthenticated("no credential")
        return self.person

    def _refused(self, method: str, _visitor: object, principal: Principal | None, error: errors.AimeshError) -> None:
        self.refusals.append((method, principal, errors.code_of(error)))


async def test_a_method_for_nodes_identifies_no_user() -> None:
    api_client = ApiClient()
    assert await api_client.gate.admit(auth.login_user, auth.LoginUser(auth.Credentials("p", "ada")), Visit(KEY)) is None
    assert api_client.asked == []


@pytest.mark.parametrize(("own", "beside"), [(KEY, None), (None, KEY), (KEY, KEY)])
async def test_the_credential_may_be_in_the_body_or_beside_it(own: Credential | None, beside: Credential | None) -> None:
    api_client = ApiClient()
    request = gateway.ProcessInferenceRequest(gateway.InferenceRequest(prompt="x"), gateway.Auth(own))
    assert await api_client.gate.admit(gateway.process_inference_request, request, Visit(beside)) == api_client.person
    assert api_client.asked == [KEY]


async def test_two_different_credentials_are_refused() -> None:
    api_client = ApiClient()
    request = gateway.ProcessInferenceRequest(gateway.InferenceRequest(prompt="x"), gateway.Auth(BODY_KEY))
    with pytest.raises(errors.BadRequest, match="two different credentials"):
        await api_client.gate.admit(gateway.process_inference_request, request, Visit(KEY))
    assert api_client.asked == []


async def test_a_refusal_is_reported_with_the_caller_if_known() -> None:
    api_client = ApiClient()
    with pytest.raises(errors.NotAllowed, match="ada is no administrator"):
        await api_client.gate.admit(auth.list_users, auth.ListUsers(), Visit(KEY))
    with pytest.raises(errors.NotAuthenticated, match="no credential"):
        await api_client.gate.admit(auth.list_users, auth.ListUsers(), Visit())
    assert api_client.refusals == [("auth.listUsers", api_client.person, "not_allowed"), ("auth.listUsers", None, "not_authenticated")]


async def test_our_own_services_may_call_user_methods_without_a_user() -> None:
    api_client = ApiClient()
    assert await api_client.gate.admit(gateway.list_nodes, gateway.ListNodes(), Visit(None, Role.METRICS)) is None
    with pytest.raises(errors.NotAuthenticated, match="no credential"):
        await api_client.gate.admit(gateway.list_nodes, gateway.ListNodes(), Visit(None, Role.CLIENT))
    assert await api_client.gate.admit(gateway.list_nodes, gateway.ListNodes(), Visit(KEY, Role.METRICS)) == api_client.person


async def test_a_key_with_networks_is_only_accepted_over_http() -> None:
    api_client = ApiClient(networks=("192.0.2.0/24",))
    with pytest.raises(errors.NotAllowed, match="bound to networks"):
        await api_client.gate.admit(gateway.get_user_quota, gateway.GetUserQuota(), Visit(KEY))
    # The gateway calls on behalf of the key after it has checked the client's address itself.
    assert await api_client.gate.admit(auth.list_api_keys, auth.ListApiKeys(), Visit(KEY, Role.GATEWAY)) == api_client.person


async def test_an_unreachable_auth_is_not_a_refusal() -> None:
    async def away(_credential: Credential | None) -> Principal:
        raise errors.Unavailable("auth does not answer")

    told: list[str] = []
    gate = Authorizer(away, lambda method, *_: told.append(method))
    with pytest.raises(errors.Unavailable, match="auth does not answer"):
        await gate.admit(auth.list_api_keys, auth.ListApiKeys(), Visit(KEY))
    assert told == []


def test_a_service_without_a_gate_cannot_serve_user_methods() -> None:
    check_declared([metrics.get_metrics], None)
    with pytest.raises(ValueError, match="has no authorizer"):
        check_declared([auth.list_api_keys], None)
    check_declared([auth.list_api_keys], ApiClient().gate)


def test_a_method_for_nodes_says_whom_it_answers() -> None:
    """Readers of models were all workers alike."""
    check_declared([model_copies.read_blob], None)
    with pytest.raises(ValueError, match="say whom it answers"):
        answer_table.check("gateway.newMethod", {Role.GATEWAY})
    with pytest.raises(ValueError, match="answers only services of the operator, but its callers include client, worker"):
        answer_table.check("gateway.readUsage", {Role.AUTH, Role.WORKER, Role.CLIENT})
