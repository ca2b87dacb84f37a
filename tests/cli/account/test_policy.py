"""`aicli policy`."""

import json
from typing import Any
from uuid import UUID

import msgspec
import pytest

from cli.account import policy
from shared import errors
from shared.api import auth, configuration, organizations
from shared.api.configuration import ExplainPolicy, GetPolicy, PolicyExplanation, PolicyRule, PolicyState, SetPolicy
from shared.api.organizations import Organization, Organizations
from shared.config_documents import Flex, GuardDocument, Machines, ModerationRule, PolicyDocument
from shared.types import KeyId, TenantId, Tier, UserId
from tests.cli.conftest import Shell
from tests.cli.output.listings import NOW

TEAM, KEY = TenantId(UUID(int=7)), KeyId(UUID(int=8))
TEAM_POLICY = f"organization:{TEAM}"


def document(**rules: Any) -> PolicyDocument:
    return msgspec.convert(rules, PolicyDocument)


@pytest.fixture
def stored(shell: Shell) -> dict[str, PolicyState]:
    """The mesh's policies by name, as `set` changes them."""
    found: dict[str, PolicyState] = {}

    def get(request: GetPolicy) -> PolicyState:
        name = request.name or TEAM_POLICY
        return found.get(name, PolicyState(name, 0, None, may_change=True))

    def change(request: SetPolicy) -> PolicyState:
        assert request.expected_version == get(GetPolicy(request.name)).version
        found[request.name] = PolicyState(request.name, request.expected_version + 1, request.policy, may_change=True)
        return found[request.name]

    shell.mesh.answer(configuration.get_policy, get)
    shell.mesh.answer(configuration.set_policy, change)
    team = Organization(TEAM, "acme", Tier.FREE, NOW, 2)
    shell.mesh.answer(organizations.list_organisations, Organizations((team,)))
    key = auth.ApiKey(KEY, UserId(UUID(int=1)), "ci", "aip_…", is_active=True, created_at=NOW)
    shell.mesh.answer(auth.list_api_keys, auth.ApiKeys((key,)))
    return found


def test_named_rules_change_and_others_stay(shell: Shell, stored: dict[str, PolicyState]) -> None:
    done = shell(
        "policy", "set", "--organization", "acme", "--external", "openai, acme", "--machines", "internal", "--max-input-price", "0.15"
    )
    assert done.stdout == f"Set the policy {TEAM_POLICY} (version 1). It is in use within seconds.\n"
    shell("policy", "set", "--organization", str(TEAM), "--external", "none", "--max-output-price", "0.6", "--no-direct-models")
    expected = document(external=[], machines="internal", max_price={"input": "0.15", "output": "0.6"}, direct_models=False)
    assert stored[TEAM_POLICY].policy == expected
    shell(
        "policy", "set", "--organization", "acme", "--unset", "max_price", "--unset", "direct_models", "--models", "a,b-*",
        "--hide-targets", "--no-store-items", "--stored-prompts", "24h", "--flex", "only",
    )  # fmt: skip
    assert stored[TEAM_POLICY].policy == document(
        external=[], machines="internal", models=["a", "b-*"], show_targets=False, store_items=False, stored_prompts="24h", flex="only"
    )
    shell("policy", "set", "--organization", "acme", "--remove")
    assert stored[TEAM_POLICY].policy is None


def test_a_policy_is_shown_as_yaml(shell: Shell, stored: dict[str, PolicyState]) -> None:
    stored["mesh"] = PolicyState("mesh", 3, document(external=["openai"], machines="trusted"), may_change=False)
    assert shell("policy", "show", "--mesh").stdout == "mesh:\n  external:\n    - openai\n  machines: trusted\n"
    assert json.loads(shell("policy", "show", "--mesh", "--json").stdout)["version"] == 3
    assert shell("policy", "show").stderr == f"There is no policy {TEAM_POLICY}.\n"
    shell("policy", "show", "--key", "ci")
    assert shell.mesh.calls[-1].request == GetPolicy(f"key:{KEY}")


def test_an_explanation(shell: Shell, stored: dict[str, PolicyState]) -> None:
    shell.mesh.answer(configuration.explain_policy, PolicyExplanation((PolicyRule("external", "openai", ("mesh", "organization")),)))
    assert " ".join(shell("policy", "explain").stdout.split()) == "RULE VALUE FROM External providers openai mesh, organization"
    assert shell.mesh.calls[-1].request == ExplainPolicy()
    shell("policy", "explain", "--organization", "acme", "--key", "ci")
    assert shell.mesh.calls[-1].request == ExplainPolicy(TEAM, KEY)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("set", "--external", "a"), "name the policy: --mesh, --default, --organization or --key"),
        (("set", "--mesh"), "give rules to set or --unset, or only --remove"),
        (("set", "--mesh", "--remove", "--machines", "own"), "give rules to set or --unset, or only --remove"),
        (("set", "--mesh", "--external", "Not Valid"), "the policy can't be used: Expected `str` matching regex"),
        (("set", "--mesh", "--max-input-price", "much"), "the policy can't be used"),
        (("show", "--mesh", "--key", "ci"), "name only one of --mesh, --default, --organization and --key"),
        (("show", "--key", "other"), "you have no key called 'other'"),
    ],
)
def test_mistakes(shell: Shell, stored: dict[str, PolicyState], words: tuple[str, ...], message: str) -> None:
    done = shell("policy", *words)
    assert done.exit_code != 0
    assert message in done.stderr
    assert not [call for call in shell.mesh.calls if call.method == configuration.set_policy.name]


def test_administrators_find_organizations_of_others(shell: Shell, stored: dict[str, PolicyState]) -> None:
    shell.mesh.answer(organizations.list_organisations, Organizations(()))
    others = (Organization(TEAM, "acme", Tier.FREE, NOW, 2), Organization(TenantId(UUID(int=9)), "acme two", Tier.FREE, NOW, 2))
    shell.mesh.answer(organizations.list_all_organisations, Organizations(others))
    shell("policy", "show", "--organization", "acme")
    assert shell.mesh.calls[-1].request == GetPolicy(TEAM_POLICY)
    shell.mesh.answer(organizations.list_all_organisations, errors.NotAllowed("no administrator"))
    assert "no organization is called 'acme'" in shell("policy", "show", "--organization", "acme").stderr


def test_the_choices_are_those_of_policies() -> None:
    assert tuple(Machines) == policy.MACHINES
    assert tuple(Flex) == policy.FLEX
    assert tuple(field.name for field in msgspec.structs.fields(PolicyDocument)) == policy.RULES


def test_guardrails(shell: Shell, stored: dict[str, PolicyState]) -> None:
    own = {"name": "project", "pattern": "PRJ", "max_length": 3}
    stored["mesh"] = PolicyState("mesh", 3, document(guard={"patterns": [own], "answer": {"ip": "mask"}}), may_change=True)
    done = shell("policy", "set", "--mesh", "--guard-prompt", "card=refuse, email=mask", "--guard-countries", "DE,US")
    assert done.exit_code == 0, done.stderr
    prompt = {"card": "refuse", "email": "mask"}
    expected = {"prompt": prompt, "countries": ["DE", "US"], "patterns": [own], "answer": {"ip": "mask"}}
    assert json.loads(msgspec.json.encode(stored["mesh"].policy))["guard"] == expected
    shell("policy", "set", "--mesh", "--guard-answer", "none", "--guard-countries", "none")
    assert json.loads(msgspec.json.encode(stored["mesh"].policy))["guard"] == {
        "prompt": {"card": "refuse", "email": "mask"},
        "patterns": [own],
    }
    shell("policy", "set", "--mesh", "--unset", "guard")
    assert stored["mesh"].policy == document()
    for wrong in ("card", "card=hide", "cards=mask"):
        assert "the policy can't be used" in shell("policy", "set", "--mesh", "--guard-prompt", wrong).stderr


def test_moderation(shell: Shell, stored: dict[str, PolicyState]) -> None:
    values = "route=moderation, prompt=refuse,answer=report,categories=violence+self-harm/intent,threshold=0.5,on_error=allow"
    done = shell("policy", "set", "--mesh", "--guard-moderation", values)
    assert done.exit_code == 0, done.stderr
    assert stored["mesh"].policy is not None
    assert stored["mesh"].policy.guard == GuardDocument(
        moderation=ModerationRule(
            route="moderation",
            prompt="refuse",
            answer="report",
            categories=("violence", "self-harm/intent"),
            threshold=0.5,
            on_error="allow",
        )
    )
    shell("policy", "set", "--mesh", "--guard-prompt", "card=mask", "--guard-moderation", "none")
    assert json.loads(msgspec.json.encode(stored["mesh"].policy))["guard"] == {"prompt": {"card": "mask"}}
    for wrong in ("prompt=refuse", "route=m,prompt=mask", "route=m,threshold=x", "route=m,threshold=2", "route=m,surprise=1"):
        assert "the policy can't be used" in shell("policy", "set", "--mesh", "--guard-moderation", wrong).stderr
