"""What someone who has just set up a stack, or a coding agent, does first: reach the right address, a model, and no limit."""

import json
import secrets
from pathlib import Path

from shared.api import auth, organizations
from tests.people import ApiClient
from tests.stacks import RunningStack

#: As `make up` sets TIER_ENTERPRISE.
AT_ONCE = 32


async def test_the_administrator_and_invited_people_have_room_for_agents_and_strangers_do_not(
    stack: RunningStack, api_client: ApiClient
) -> None:
    rpc, email = api_client.mesh.rpc, f"ben-{secrets.token_hex(4)}@example.org"
    invited = await rpc.call(organizations.invite_colleague, organizations.InviteColleague(email), credential=stack.api_key)
    data = auth.UserData(email.partition("@")[0], email, secrets.token_urlsafe(18))
    await rpc.call(auth.register_user, auth.RegisterUser(data, invitation=invited.token))
    session = await rpc.call(auth.login_user, auth.LoginUser(auth.Credentials(data.password, data.username)))
    stranger = await api_client.register("stranger")
    shown = []
    for credential in (stack.api_key, session.access_token, stranger.key.secret):
        async with stack.http(credential) as http:
            quota = (await http.get("/api/quota")).json()
        limits = {limit["kind"]: limit["limit"] for limit in quota["limits"] if limit["scope"] == "user"}
        shown.append((quota["tier"], limits.get("concurrency"), "requests_per_hour" in limits))
    assert shown == [("enterprise", AT_ONCE, False), ("enterprise", AT_ONCE, False), ("free", None, True)]


async def test_a_wrong_base_url_names_the_right_one_at_both_ports(stack: RunningStack) -> None:
    for service in ("gateway", "web"):
        async with stack.http(stack.api_key, service=service) as http:
            address = str(http.base_url).rstrip("/")
            for path, right in (
                ("/v1/v1/messages", address), ("/messages", f"{address}/v1"), ("/models", f"{address}/v1"),
                ("/v1/chat/completions/", f"{address}/v1"), ("//v1/responses", address),
            ):  # fmt: skip
                answer = await http.post(f"{address}{path}", json={})
                assert answer.status_code == 404
                assert f"set the base URL of your client to {right}, without" in answer.json()["error"]["message"], (service, path)


async def test_a_pattern_takes_the_background_requests_of_an_agent(stack: RunningStack, tmp_path: Path) -> None:
    file = tmp_path / "routes.yaml"
    file.write_text("routes:\n  claude-*: {targets: [{name: local, model: echo}]}\n")
    applied = await stack.aicli("admin", "config", "apply", "-f", str(file))
    assert applied.status == 0, applied.err
    body = {"model": "claude-haiku-9", "max_tokens": 9, "messages": [{"role": "user", "content": "a title"}]}
    try:
        async with stack.http(stack.api_key) as http:
            answer = await http.post("/v1/messages", json=body)
            assert (answer.status_code, answer.json()["model"]) == (200, "claude-haiku-9")
            assert answer.headers["x-aimesh-route"].startswith("claude-*@")
            assert "claude-*" not in (await http.get("/v1/models")).text
        tried = await stack.aicli("admin", "routes", "try", "claude-*", "--json")
        assert json.loads(tried.out)["name"] == "claude-*"
    finally:
        file.write_text("routes: {claude-*: null}\n")
        assert (await stack.aicli("admin", "config", "apply", "-f", str(file))).status == 0
