"""The pages of policies."""

from uuid import UUID

import msgspec
import pytest

from shared.config_documents import (
    Flex,
    GuardAction,
    GuardDocument,
    GuardKind,
    Machines,
    ModerationRule,
    PolicyDocument,
    PriceCeiling,
    StoredPrompts,
)
from shared.types import TenantId, UserRole
from tests.services.web.browser import Browser, forms_of
from tests.services.web.fake_mesh import FakeMesh

EVIL = "<script>alert(1)</script>"


@pytest.fixture
def acme(mesh: FakeMesh, alice: Browser) -> str:
    """The policy page of an organization that alice owns."""
    team = mesh.add_team("Acme", mesh.accounts["alice"].user)
    mesh.changeable.add(f"organization:{team}")
    return f"/policies/organization-{team}"


async def test_an_owner_finds_and_changes_the_policy(alice: Browser, mesh: FakeMesh, acme: str) -> None:
    team = acme.removeprefix("/policies/organization-")
    assert f'href="{acme}"' in (await alice.get(f"/organisations/{team}")).text
    page = await alice.get(acme)
    assert "Effective policy" in page.text
    assert forms_of(page)[acme]["external"] == ""
    fields = {
        "external": "openai, acme",
        "machines": "internal",
        "models": "none",
        "max_input": "0.15",
        "show_targets": "no",
        "store_items": "no",
        "stored_prompts": "24h",
        "flex": "only",
    }
    answer = await alice.submit(page, acme, **fields)
    assert answer.headers["location"] == f"{acme}?done=set"
    expected = PolicyDocument(
        external=("openai", "acme"),
        machines=Machines.INTERNAL,
        models=(),
        max_price=PriceCeiling(input="0.15"),
        show_targets=False,
        store_items=False,
        stored_prompts=StoredPrompts.DAY,
        flex=Flex.ONLY,
    )
    assert mesh.policies[f"organization:{team}"] == (1, expected)
    page = await alice.get(answer.headers["location"])
    assert "Policy saved." in page.text
    shown = forms_of(page)[acme]
    assert {name: shown[name] for name in ("external", "models", "max_input")} == {
        name: fields[name] for name in ("external", "models", "max_input")
    }
    assert '<option value="internal" selected>' in page.text
    assert "mesh, organization" in page.text, "the levels of what applies"
    removed = await alice.submit(page, f"{acme}/remove")
    assert removed.headers["location"] == f"{acme}?done=removed"
    assert mesh.policies[f"organization:{team}"] == (2, None)


async def test_guardrails_are_shown_and_stay(alice: Browser, mesh: FakeMesh, acme: str) -> None:
    name = f"organization:{acme.removeprefix('/policies/organization-')}"
    rule = ModerationRule(route="moderation", prompt="refuse")
    guard = GuardDocument(prompt={GuardKind.CARD: GuardAction.REFUSE}, answer={GuardKind.OWN: GuardAction.MASK}, moderation=rule)
    mesh.policies[name] = 3, PolicyDocument(guard=guard)
    page = await alice.get(acme)
    for label in ("Card numbers in prompts", "Own patterns in answers", "Harmful texts", "moderation: prompt refuse, answer off"):
        assert label in page.text
    answer = await alice.submit(page, acme, models="llama3")
    assert answer.headers["location"] == f"{acme}?done=set"
    assert mesh.policies[name] == (4, PolicyDocument(models=("llama3",), guard=guard))


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        (("external", "Not Valid"), "External providers: this value can’t be used"),
        (("models", "a,,b"), "Models: this value can’t be used"),
        (("max_input", "much"), "Maximum price: this value can’t be used"),
        (("machines", "all"), "Machines: this value can’t be used"),
        (("direct_models", "maybe"), "Direct models: this value can’t be used"),
        (("version", "x"), "invalid version"),
    ],
)
async def test_a_mistake_keeps_the_form(alice: Browser, mesh: FakeMesh, acme: str, typed: tuple[str, str], message: str) -> None:
    page = await alice.submit(await alice.get(acme), acme, **dict([("targets", "kept"), typed]))
    assert page.status_code == 400
    assert message.lower().replace("’", "'") in page.text.lower().replace("’", "'").replace("&#39;", "'").replace("&#x27;", "'")
    assert forms_of(page)[acme]["targets"] == "kept"
    assert mesh.policies == {}


async def test_of_two_people_who_change_the_same_version_the_second_is_told(alice: Browser, mesh: FakeMesh, acme: str) -> None:
    page = await alice.get(acme)
    await alice.submit(page, acme, machines="own")
    second = await alice.submit(page, acme, machines="trusted")
    assert second.status_code == 409
    assert "the policy has changed" in second.text.lower()


async def test_a_member_only_reads_it(alice: Browser, mesh: FakeMesh, acme: str) -> None:
    mesh.changeable.clear()
    name = acme.removeprefix("/policies/").replace("-", ":", 1)
    mesh.policies[name] = 1, PolicyDocument(external=("openai",), models=("a*",))
    page = await alice.get(acme)
    assert acme not in forms_of(page)
    assert "openai" in page.text
    assert "a*" in page.text
    assert "Only the" not in page.text


async def test_the_policy_of_a_key_and_those_of_the_mesh(alice: Browser, mesh: FakeMesh) -> None:
    page = await alice.get(f"/policies/key-{UUID(int=5)}")
    assert "Policy of a key" in page.text
    assert f"/api-keys/{UUID(int=5)}" in page.text
    assert "/policies/mesh" not in page.text
    account = mesh.accounts["alice"]
    account.user = msgspec.structs.replace(account.user, role=UserRole.ADMIN)
    mesh.sessions = dict.fromkeys(mesh.sessions, account.user)
    page = await alice.get("/policies/mesh")
    assert "Policy of the mesh" in page.text
    answer = await alice.submit(page, "/policies/mesh", external="*")
    assert answer.headers["location"] == "/policies/mesh?done=set"
    assert mesh.policies["mesh"] == (1, PolicyDocument(external=("*",)))


@pytest.mark.parametrize("path", ["other", "organization-x", "key-", "mesh-x", "organization:1"])
async def test_no_such_policy(alice: Browser, path: str) -> None:
    assert (await alice.get(f"/policies/{path}")).status_code == 404


async def test_names_are_text(alice: Browser, mesh: FakeMesh, acme: str) -> None:
    page = await alice.submit(await alice.get(acme), acme, models=EVIL)
    assert EVIL not in page.text
    assert TenantId(UUID(acme.removeprefix("/policies/organization-"))) in mesh.teams
