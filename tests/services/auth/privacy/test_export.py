"""The data export: complete, only the user's own data, and no secrets."""

import json

import pytest

from services.auth import audit_records
from shared import access_table, errors
from shared.access_table import IS_SENSITIVE
from tests.services.auth import by_hand
from tests.services.auth.privacy.surroundings import Canaries, PrivacyDesk, user_with_data
from tests.services.auth.surroundings import PASSWORD

#: Secrets, other people's data, and the addresses of callers who were not authenticated.
_NOT_EXPORTED = {"key_hash", "former_hash", "recovery", "invited_from", "refused_from", "mention"}


async def test_the_export_has_all_data_and_no_secret(api_client: PrivacyDesk) -> None:
    canaries = Canaries()
    person = await user_with_data(api_client, canaries)
    files = await api_client.export(person.login())
    assert list(files) == [
        "README.txt", "account.json", "preferences.json", "keys.json", "organisations.json", "invitations.json",
        "logins-at-providers.json", "notices.json", "nodes.json", "tickets.json", "sessions.json", "audit.json",
    ]  # fmt: skip
    everything = b"\n".join(files.values()).decode()
    assert set(canaries.left_in(everything)) == set(canaries.NAMES) - _NOT_EXPORTED
    assert PASSWORD not in everything
    assert "argon2" not in everything
    for name, content in files.items():
        assert name == "README.txt" or isinstance(json.loads(content), list)


async def test_the_readme_describes_each_file(api_client: PrivacyDesk) -> None:
    anna = await api_client.api_client.person()
    files = await api_client.export(anna.login())
    for name in files:
        assert name in files["README.txt"].decode() or name == "README.txt"


async def test_the_export_has_no_data_of_other_users(api_client: PrivacyDesk) -> None:
    theirs = Canaries()
    anna = await user_with_data(api_client, theirs)
    bert = await api_client.api_client.person("bert")
    await api_client.team(anna, "shared team", (bert, "member"))
    files = await api_client.export(bert.login())
    everything = b"\n".join(files.values()).decode()
    assert theirs.left_in(everything) == []
    assert str(anna.id) not in everything
    assert "shared team" in everything
    assert json.loads(files["keys.json"]) == []


async def test_a_user_acting_for_an_organisation_gets_only_their_own_data(api_client: PrivacyDesk) -> None:
    canaries = Canaries()
    anna = await user_with_data(api_client, canaries)
    bert = await api_client.api_client.person("bert")
    team = await api_client.team(anna, "shared team", (bert, "member"))
    files = await api_client.export(bert.login(team_id=team))
    assert canaries.left_in(b"\n".join(files.values()).decode()) == []
    assert json.loads(files["account.json"])[0]["username"] == "bert"


async def test_budgets_are_exported(api_client: PrivacyDesk, postgres_url: str) -> None:
    anna = await user_with_data(api_client, Canaries())
    await by_hand.run(postgres_url, "UPDATE auth.users SET budget = '{\"micro\": 5}'")
    await by_hand.run(postgres_url, "UPDATE auth.api_keys SET limits = '{\"budget_micro\": 7}', budget_every = 'week'")
    files = await api_client.export(anna.login())
    assert json.loads(files["account.json"])[0]["budget"] == {"micro": 5}
    assert json.loads(files["account.json"])[0].items() >= {"verified_at": None, "verified_address": None}.items()
    assert {(key["budget_micro"], key["budget_every"]) for key in json.loads(files["keys.json"])} == {(7, "week")}


async def test_a_long_file_arrives_in_pieces_and_complete(api_client: PrivacyDesk) -> None:
    anna = await api_client.api_client.person()
    async with api_client.audit.transaction() as transaction:
        await api_client.audit.append(
            transaction, [audit_records.done_by("session.open", anna.id, target=number) for number in range(1200)]
        )
    rows = json.loads((await api_client.export(anna.login()))["audit.json"])
    targets = {row["act"]["target"] for row in rows if row["act"]["action"] == "session.open"}
    assert targets == {str(number) for number in range(1200)}


async def test_an_export_is_logged_and_needs_a_fresh_login(api_client: PrivacyDesk) -> None:
    anna = await api_client.api_client.person()
    with pytest.raises(errors.ConfirmationNeeded, match=IS_SENSITIVE):
        await api_client.export(anna.login(seconds_ago=access_table.FRESH_SECONDS + 1))
    assert await api_client.sql("SELECT 1 FROM audit_log WHERE action = 'account.export'") == []
    await api_client.export(anna.login())
    assert len(await api_client.sql("SELECT 1 FROM audit_log WHERE action = 'account.export'")) == 1
