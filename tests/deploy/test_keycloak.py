"""The realm of deploy/keycloak matches what auth and web send. Keycloak itself doesn't run: no package has it."""

import json
import re
import time
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from services.auth.oidc import discovery, flow
from services.auth.oidc.discovery import ALGORITHMS, GROUPS_CLAIM
from services.web.pages.account import provider_login
from shared.types import UserRole

ROOT = Path(__file__).parents[2]
REALM = json.loads((ROOT / "deploy" / "keycloak" / "realm.json").read_text(encoding="utf-8"))
[CLIENT] = REALM["clients"]
HOWTO = (ROOT / "docs" / "howto" / "single-sign-on.md").read_text(encoding="utf-8")
ADDRESS = "https://ai.example.org"


def authorization_request() -> dict[str, str]:
    issuer = "https://login.example.org/realms/aimesh"
    place = f"{issuer}/protocol/openid-connect"
    metadata = discovery.ProviderMetadata(
        issuer=issuer, authorization_endpoint=f"{place}/auth", token_endpoint=f"{place}/token", jwks_uri=f"{place}/certs"
    )
    registration = discovery.ClientRegistration(issuer=issuer, client_id=CLIENT["clientId"], client_secret="secret")
    purpose = flow.LoginPurpose(
        redirect_uri=ADDRESS + provider_login.finish.paths.copy().pop(), then="/", link_to=None, max_age_seconds=None
    )
    begun = flow.begin_login(metadata, registration, purpose, time.time(), lambda: "x" * 43)
    return {name: values[0] for name, values in parse_qs(urlsplit(begun.url).query).items()}


def test_the_client_allows_what_auth_asks_for() -> None:
    asked = authorization_request()
    assert asked["response_type"] == "code"
    assert CLIENT["standardFlowEnabled"]
    assert CLIENT["redirectUris"] == [asked["redirect_uri"].replace(ADDRESS, "${AIMESH_URL}")]
    assert CLIENT["attributes"]["pkce.code.challenge.method"] == asked["code_challenge_method"]
    assert REALM["defaultSignatureAlgorithm"] in ALGORITHMS


def test_the_client_allows_nothing_else() -> None:
    assert not any(CLIENT[flow] for flow in ("publicClient", "implicitFlowEnabled", "directAccessGrantsEnabled", "serviceAccountsEnabled"))
    assert CLIENT["secret"] == "${AIMESH_CLIENT_SECRET}", "no secret in the repository"
    assert CLIENT["attributes"]["post.logout.redirect.uris"] == "${AIMESH_URL}/"


def test_groups_reach_the_claim_that_auth_reads_by_the_names_of_the_howto() -> None:
    [mapper] = CLIENT["protocolMappers"]
    assert mapper["config"]["claim.name"] == GROUPS_CLAIM
    assert mapper["config"]["id.token.claim"] == "true"
    # With the full path, the group would be called /developers.
    assert mapper["config"]["full.path"] == "false"
    [table] = re.findall(r"OIDC_ROLES='(\{\"admins\".*?\})'", HOWTO)
    roles = {name: UserRole(role) for name, role in json.loads(table).items()}
    assert set(roles) == {group["name"] for group in REALM["groups"]}
