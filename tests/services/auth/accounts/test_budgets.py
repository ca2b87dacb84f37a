"""Budgets of keys, users and organizations reach the gateway with whoever calls."""

from uuid import uuid4

import asyncpg
import msgspec
import pytest

from services.auth.settings import AuthSettings
from shared import errors
from shared.api import accounts, audit, auth, organizations
from shared.api.auth import ApiKeyLimits, Budget, Every
from shared.types import Credential, MicroCredits, TenantId
from tests.cases import case
from tests.services.auth import by_hand
from tests.services.auth.surroundings import Surroundings

MONTHLY, DAILY = Budget(MicroCredits(20_000_000), Every.MONTH), Budget(MicroCredits(500_000), Every.DAY)


async def identify(world: Surroundings, credential: str) -> auth.Principal:
    return await world.ask(auth.identify, auth.Identify(Credential(credential)))


async def test_the_budget_of_a_key_is_stored_with_its_renewal(world: Surroundings) -> None:
    await world.register()
    login = (await world.login()).access_token
    for every in (None, *Every):
        with case(every):
            limits = ApiKeyLimits(requests_per_hour=60, budget_micro=MicroCredits(5), budget_every=every)
            made = await world.new_key(login, f"key {every}", limits)
            assert made.key.limits == (await identify(world, made.api_key)).key_limits == limits
            rotated = await world.ask(auth.rotate_api_key, auth.RotateApiKey(str(made.key.id)), login)
            assert rotated.key.limits == limits
    listed = await world.ask(auth.list_api_keys, auth.ListApiKeys(), login)
    assert [key.limits.budget_every for key in listed.keys] == [Every.MONTH, Every.WEEK, Every.DAY, None]
    with pytest.raises(errors.BadRequest, match="there is no budget to renew"):
        await world.new_key(login, "none", ApiKeyLimits(budget_every=Every.DAY))


async def test_a_user_has_a_budget_for_their_own_requests(world: Surroundings) -> None:
    user, made = await world.user_with_key()
    login = (await world.login()).access_token
    for owner in (user.username, user.email, str(user.id)):
        for budget in (MONTHLY, msgspec.structs.replace(MONTHLY, every=None), None):
            with case(f"{owner}: {budget}"):
                set_ = await world.administer(auth.set_budget, auth.SetBudget(owner, budget))
                assert set_ == auth.OwnerBudget(TenantId(user.id), user.username, budget)
                assert [(await identify(world, each)).budget for each in (made.api_key, login)] == [budget, budget]
                assert (await world.administer(auth.get_user, auth.GetUser(user.id))).budget == budget


async def test_an_organization_has_its_own_budget(world: Surroundings) -> None:
    user, own = await world.user_with_key()
    login = (await world.login()).access_token
    team = await world.ask(organizations.create_organisation, organizations.CreateOrganization("Acme"), login)
    as_team = (await world.ask(accounts.switch_organisation, accounts.SwitchTeam(team.id), login)).access_token
    of_team = await world.new_key(as_team, "of the team")
    await world.administer(auth.set_budget, auth.SetBudget(user.username, DAILY))
    set_ = await world.administer(auth.set_budget, auth.SetBudget(str(team.id), MONTHLY))
    assert set_ == auth.OwnerBudget(team.id, "Acme", MONTHLY)
    assert [(await identify(world, each)).budget for each in (own.api_key, of_team.api_key, as_team)] == [DAILY, MONTHLY, MONTHLY]
    shown = await world.administer(organizations.get_organisation, organizations.GetOrganization(team.id))
    assert shown.organisation.budget == MONTHLY
    await world.administer(auth.set_budget, auth.SetBudget(str(team.id)))
    assert [(await identify(world, each)).budget for each in (own.api_key, of_team.api_key, as_team)] == [DAILY, None, None]
    found = await world.administer(audit.list_audit, audit.ListAudit(action="organisation.budget"))
    details = [(row.act.target, row.act.details) for row in found.rows]
    monthly = '{"micro":20000000,"every":"month"}'
    assert details == [(str(team.id), {"before": monthly, "after": ""}), (str(team.id), {"before": "", "after": monthly})]


async def test_only_administrators_set_budgets_and_only_of_those_who_exist(world: Surroundings) -> None:
    user, made = await world.user_with_key()
    with pytest.raises(errors.NotAllowed):
        await world.ask(auth.set_budget, auth.SetBudget(user.username, MONTHLY), made.api_key)
    with pytest.raises(errors.NotFound, match="there is no user 'nobody'"):
        await world.administer(auth.set_budget, auth.SetBudget("nobody", MONTHLY))
    with pytest.raises(errors.NotFound, match="no user or organization has the id"):
        await world.administer(auth.set_budget, auth.SetBudget(str(uuid4()), MONTHLY))


async def test_the_database_refuses_what_nobody_could_read(world: Surroundings, settings: AuthSettings) -> None:
    await world.register()
    for wrong in ("{}", "[]", '{"micro": 0}', '{"micro": "5"}', '{"micro": 5, "every": "year"}', '{"micro": 5, "every": 1}'):
        with case(wrong), pytest.raises(asyncpg.CheckViolationError):
            await by_hand.run(settings.database_url, "UPDATE auth.users SET budget = $1", wrong)
    await by_hand.run(settings.database_url, 'UPDATE auth.users SET budget = \'{"micro": 5, "every": "week"}\'')
    assert (await world.login()).user.budget == Budget(MicroCredits(5), Every.WEEK)
