"""Deleting accounts: planned, canceled, and done so that nothing left identifies the user."""

import asyncio
from datetime import UTC, datetime, timedelta

import pytest

from services.auth.session_opening import CompleteLogin
from services.auth.sessions.session_store import SessionStore, StoredLogin
from shared import access_table, errors, features
from shared.access_table import IS_SENSITIVE
from shared.api import accounts
from shared.types import TenantId
from tests.services.auth.accounts.surroundings import by_hand
from tests.services.auth.privacy.surroundings import AwaySessions, Canaries, PrivacyDesk, administrator, user_with_data

# --- planning --------------------------------------------------------------------------------------------------------


async def test_a_request_closes_nothing_and_names_the_day(api_client: PrivacyDesk) -> None:
    anna = await api_client.api_client.person()
    erasure = await api_client.plan(anna)
    assert abs(erasure.erased_at - datetime.now(UTC) - timedelta(days=30)) < timedelta(minutes=1)
    assert api_client.api_client.mailer.told() == [("anna@example.com", "Your account will be deleted")]
    await api_client.erasures.erase_due()
    assert await anna.again() == anna.user
    assert (await api_client.api_client.rows.get(anna.id)).erase_at == erasure.erased_at


async def test_a_repeated_request_gets_the_same_day_and_no_second_mail(api_client: PrivacyDesk) -> None:
    anna = await api_client.api_client.person()
    first = await api_client.plan(anna)
    assert await api_client.plan(anna) == first
    assert len(api_client.api_client.mailer.told()) == 1
    assert len(await api_client.sql("SELECT 1 FROM audit_log WHERE action = 'account.ask_erasure'")) == 1


async def test_a_request_needs_a_fresh_login(api_client: PrivacyDesk) -> None:
    anna = await api_client.api_client.person()
    with pytest.raises(errors.ConfirmationNeeded, match=IS_SENSITIVE):
        stale = anna.login(seconds_ago=access_table.FRESH_SECONDS + 1)
        await api_client.ask(accounts.request_erasure, accounts.RequestErasure(), stale)


async def test_a_user_cancels_the_erasure(api_client: PrivacyDesk) -> None:
    anna = await api_client.api_client.person()
    await api_client.plan(anna)
    await api_client.let_time_pass(anna)
    await api_client.ask(accounts.cancel_erasure, accounts.CancelErasure(), anna.login())
    await api_client.erasures.erase_due()
    assert await anna.again() == anna.user
    assert [subject for _, subject in api_client.api_client.mailer.told()] == ["Your account will be deleted", "Account deletion canceled"]
    await api_client.ask(accounts.cancel_erasure, accounts.CancelErasure(), anna.login())
    assert api_client.api_client.mailer.told() == [], "nothing to call off is no error"


async def test_logging_in_cancels_the_erasure(api_client: PrivacyDesk) -> None:
    anna = await api_client.api_client.person()
    await api_client.plan(anna)
    opened = await SessionStore(api_client.api_client.cache, idle_seconds=60, longest_seconds=60).open(StoredLogin(user_id=anna.id))
    login = CompleteLogin(opened.session, is_new_browser=False, is_marked=False)
    async with api_client.api_client.store.transaction() as transaction:
        await api_client.erasures.call_off_at_login(transaction, login)
    assert (await api_client.api_client.rows.get(anna.id)).erase_at is None
    assert [subject for _, subject in api_client.api_client.mailer.told()] == ["Your account will be deleted", "Account deletion canceled"]
    async with api_client.api_client.store.transaction() as transaction:
        await api_client.erasures.call_off_at_login(transaction, login)
    assert len(await api_client.sql("SELECT 1 FROM audit_log WHERE action = 'account.keep'")) == 1
    assert api_client.api_client.mailer.told() == []


# --- last administrators and owners ----------------------------------------------------------------------------------


async def test_the_last_administrator_cannot_be_deleted(api_client: PrivacyDesk) -> None:
    await api_client.sql("UPDATE users SET role = 'user'")
    admin = await administrator(api_client, "anna")
    with pytest.raises(errors.NotAllowed, match="last administrator"):
        await api_client.plan(admin)
    other = await administrator(api_client, "bert")
    await api_client.plan(admin)
    with pytest.raises(errors.NotAllowed, match="last administrator"):
        await api_client.plan(other)


async def test_one_of_two_administrators_who_ask_concurrently_stays(api_client: PrivacyDesk) -> None:
    await api_client.sql("UPDATE users SET role = 'user'")
    both = [await administrator(api_client, "anna"), await administrator(api_client, "bert")]
    outcomes = await asyncio.gather(*(api_client.plan(one) for one in both), return_exceptions=True)
    assert sorted(type(outcome).__name__ for outcome in outcomes) == ["Erasure", "NotAllowed"]


async def test_a_user_who_became_the_last_administrator_is_not_deleted(api_client: PrivacyDesk) -> None:
    await api_client.sql("UPDATE users SET role = 'user'")
    anna, bert = await administrator(api_client, "anna"), await administrator(api_client, "bert")
    await api_client.plan(anna)
    await api_client.sql("UPDATE users SET role = 'user' WHERE id = $1", bert.id)
    await api_client.let_time_pass(anna)
    await api_client.erasures.erase_due()
    assert await anna.again() == anna.user
    await api_client.sql("UPDATE users SET role = 'admin' WHERE id = $1", bert.id)
    await api_client.erasures.erase_due()
    assert (await anna.again()).username.startswith("erased-")


async def test_the_only_owner_of_an_organisation_must_hand_it_over_first(api_client: PrivacyDesk) -> None:
    anna, bert = await api_client.api_client.person("anna"), await api_client.api_client.person("bert")
    await api_client.team(anna, "Acme", (bert, "member"))
    await api_client.team(anna, "alone")
    with pytest.raises(errors.NotAllowed, match="has no other owner: Acme") as refused:
        await api_client.plan(anna)
    assert "owner" in refused.value.hint
    await api_client.plan(bert)
    await api_client.sql("UPDATE organisation_members SET role = 'owner' WHERE user_id = $1", bert.id)
    await api_client.plan(anna)


async def test_a_user_who_became_the_only_owner_is_succeeded_by_the_oldest_member(api_client: PrivacyDesk) -> None:
    anna, bert, carla = [await api_client.api_client.person(name) for name in ("anna", "bert", "carla")]
    team = await api_client.team(anna, "Acme", (bert, "owner"), (carla, "member"))
    await api_client.plan(anna)
    await api_client.sql("UPDATE organisation_members SET role = 'member' WHERE user_id = $1", bert.id)
    await api_client.let_time_pass(anna)
    await api_client.erasures.erase_due()
    members = await api_client.sql("SELECT user_id, role FROM organisation_members WHERE organisation_id = $1", team)
    assert {(row["user_id"], row["role"]) for row in members} == {(bert.id, "owner"), (carla.id, "member")}
    assert (await api_client.sql("SELECT name FROM organisations WHERE id = $1", team))[0]["name"] == "Acme"


# --- erasing ---------------------------------------------------------------------------------------------------------


async def test_none_of_more_than_twenty_canaries_is_left(api_client: PrivacyDesk) -> None:
    canaries = Canaries()
    person = await user_with_data(api_client, canaries)
    before = await api_client.every_cell()
    assert set(canaries.left_in(before)) == set(canaries.NAMES), "each is there before, or finding none of it says nothing"
    await api_client.erase(person)
    left = await api_client.every_cell()
    assert canaries.left_in(left) == []
    assert "somebody.else@example.com" in left, "what does not name this person stays"


async def test_only_a_pseudonym_without_a_login_is_left(api_client: PrivacyDesk) -> None:
    person = await user_with_data(api_client, Canaries())
    await api_client.erase(person)
    left = await person.again()
    assert left.id == person.id, "what was used and paid is counted under it"
    assert left.username.startswith("erased-")
    assert len(left.username) == len("erased-") + 8
    assert left.email == f"{left.username.removeprefix('erased-')}@erased.invalid"
    assert not left.is_active
    rows = await api_client.sql("SELECT password_hash, role, erase_at, erased_at FROM users WHERE id = $1", person.id)
    assert (rows[0]["password_hash"], rows[0]["role"], rows[0]["erase_at"]) == (None, "user", None)
    assert rows[0]["erased_at"] is not None
    keys = await api_client.sql("SELECT is_active, name, user_id FROM api_keys WHERE user_id = $1", person.id)
    assert [(row["is_active"], row["name"]) for row in keys] == [(False, "erased")] * 2
    nodes = await api_client.sql("SELECT state, reason FROM nodes WHERE owner = $1", person.id)
    assert [(row["state"], row["reason"]) for row in nodes] == [("revoked", "its owner was deleted")]
    assert len(await api_client.sql("SELECT 1 FROM tickets WHERE owner = $1 AND revoked_at IS NOT NULL", person.id)) == 1
    assert await api_client.sessions.list_of(person.id) == ()
    acts = await api_client.sql("SELECT chain, target, actor FROM audit_log WHERE action = 'user.erased'")
    assert [(row["chain"], row["target"], row["actor"]) for row in acts] == [("house", str(person.id), None)]


async def test_other_users_keep_all_their_data(api_client: PrivacyDesk) -> None:
    theirs = Canaries()
    anna = await user_with_data(api_client, theirs)
    bert = await api_client.api_client.person("bert")
    await api_client.erase(bert)
    assert set(theirs.left_in(await api_client.every_cell())) == set(theirs.NAMES)
    assert await anna.again() == anna.user


async def test_nothing_is_deleted_while_valkey_is_down_and_everything_later(api_client: PrivacyDesk) -> None:
    canaries = Canaries()
    person = await user_with_data(api_client, canaries)
    await api_client.plan(person)
    await api_client.let_time_pass(person)
    with pytest.raises(errors.Unavailable, match="Valkey does not answer"):
        await api_client.replica(AwaySessions()).erase_due()
    assert set(canaries.left_in(await api_client.every_cell())) == set(canaries.NAMES)
    await api_client.erasures.erase_due()
    assert canaries.left_in(await api_client.every_cell()) == []


async def test_stored_answers_and_what_features_store_are_deleted_also_those_of_a_closed_organization(api_client: PrivacyDesk) -> None:
    gateway = api_client.gateway
    anna, bert = await api_client.api_client.person("anna"), await api_client.api_client.person("bert")
    alone = await api_client.team(anna, "Alone")
    await api_client.team(anna, "Both", (bert, "owner"))
    api_client.announce("one")
    await api_client.erase(anna)
    assert gateway.dropped == [TenantId(anna.id)]
    known = [*reversed(features.having("gateway.part"))]
    assert gateway.without == [(tenant, name) for tenant in (TenantId(anna.id), alone) for name in (*known, "one")]


async def test_an_account_waits_for_a_gateway_with_each_feature_and_the_others_are_erased(api_client: PrivacyDesk) -> None:
    anna = await api_client.api_client.person("anna")
    api_client.announce("one", "two", "three")
    api_client.gateway.lacks = {"two"}
    await api_client.erase(anna)
    assert await anna.again() == anna.user
    assert [name for _, name in api_client.gateway.without][-2:] == ["one", "three"]
    api_client.gateway.lacks.clear()
    await api_client.replica().erase_due()
    assert (await anna.again()).username.startswith("erased-")
    assert [name for _, name in api_client.gateway.without][-3:] == ["one", "two", "three"]


async def test_an_account_with_files_waits_for_the_gateway(api_client: PrivacyDesk) -> None:
    anna = await api_client.api_client.person("anna")
    api_client.gateway.away = True
    await api_client.plan(anna)
    await api_client.let_time_pass(anna)
    with pytest.raises(errors.NotReachable):
        await api_client.erasures.erase_due()
    assert await anna.again() == anna.user
    api_client.gateway.away = False
    await api_client.erasures.erase_due()
    assert (await anna.again()).username.startswith("erased-")


async def test_one_of_five_replicas_deletes_the_account(api_client: PrivacyDesk) -> None:
    people = [await api_client.api_client.person(f"anna{number}") for number in range(4)]
    for person in people:
        await api_client.plan(person)
        await api_client.let_time_pass(person)
    await asyncio.gather(*(api_client.replica().erase_due() for _ in range(5)))
    acts = await api_client.sql("SELECT target FROM audit_log WHERE action = 'user.erased'")
    assert sorted(row["target"] for row in acts) == sorted(str(person.id) for person in people)


async def test_the_name_and_address_become_available_again(api_client: PrivacyDesk) -> None:
    await api_client.erase(await api_client.api_client.person("anna"))
    again = await api_client.api_client.person("anna")
    assert again.user.username == "anna"


async def test_the_audit_log_still_verifies_without_personal_data(api_client: PrivacyDesk) -> None:
    person = await user_with_data(api_client, Canaries())
    rows = "SELECT chain, sequence, encode(hash, 'hex') AS hash FROM audit_log"
    before = {tuple(row) for row in await api_client.sql(rows)}
    assert len(before) >= 2
    await api_client.erase(person)
    assert before < {tuple(row) for row in await api_client.sql(rows)}
    assert await api_client.sql("SELECT 1 FROM audit_details WHERE actor = $1", person.id) == []


async def test_other_services_caches_are_invalidated(api_client: PrivacyDesk) -> None:
    anna = await api_client.api_client.person()
    last = (await by_hand(api_client.url, "SELECT coalesce(max(sequence), 0) AS last FROM changes"))[0]["last"]
    await api_client.erase(anna)
    heard = await api_client.sql("SELECT 1 FROM changes WHERE user_id = $1 AND sequence > $2", anna.id, last)
    assert heard
