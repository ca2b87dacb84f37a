"""Keys of an organisation: whom they act for, and who sees and ends them."""

import pytest

from shared import errors
from shared.api import auth
from shared.types import Credential
from tests.services.auth.organizations.seeded_database import Person, Town


def _names(keys: tuple[auth.ApiKey, ...]) -> set[str]:
    return {key.name for key in keys}


async def team(town: Town) -> tuple[Person, Person, Credential, Credential]:
    """An owner and a member, and a login of each that acts for the organisation."""
    anna, ben = await town.person("anna"), await town.person("ben")
    acme = await town.found(anna)
    return anna, ben, town.login(anna.user, acme.id), await town.join(anna, acme, ben)


async def test_a_key_made_for_an_organisation_acts_for_it(town: Town) -> None:
    anna, _, owner, _ = await team(town)
    made = await town.key(owner)
    found = await town.principal(made.api_key)
    assert made.key.team_id == found.team_id == found.tenant_id
    assert found.team_id is not None
    assert found.user_id == anna.user.id
    assert (await town.key(made.api_key, "heir")).key.team_id == found.team_id, "a key of an organisation makes keys of it"


async def test_an_owner_sees_all_keys_of_the_organisation_and_a_member_their_own(town: Town) -> None:
    anna, ben, owner, member = await team(town)
    await town.key(owner, "annas")
    bens = await town.key(member, "bens")
    await town.key(anna.login, "annas own")
    await town.key(ben.login, "bens own")
    assert _names(await town.keys(owner)) == {"annas", "bens"}
    assert _names(await town.keys(member)) == {"bens"}
    assert _names(await town.keys(anna.login)) == {"annas own"}
    assert _names(await town.keys(bens.api_key)) == {"bens"}, "a key of an organisation knows nothing of its user's own"
    boss = await town.admin()
    assert _names((await town.ask(auth.list_api_keys, auth.ListApiKeys(ben.user.id), boss.login)).keys) == {"bens", "bens own"}


async def test_an_owner_ends_a_members_key_and_does_not_take_it_over(town: Town) -> None:
    _, _, owner, member = await team(town)
    bens = await town.key(member, "bens")
    for method, request in (
        (auth.rotate_api_key, auth.RotateApiKey(str(bens.key.id))),
        (auth.rename_api_key, auth.RenameApiKey(str(bens.key.id), "mine")),
    ):
        with pytest.raises(errors.NotAllowed, match="its own user"):
            await town.ask(method, request, owner)  # type: ignore[misc]  # a union of pairs
    annas = await town.key(owner, "annas")
    with pytest.raises(errors.NotFound):
        await town.ask(auth.revoke_api_key, auth.RevokeApiKey(str(annas.key.id)), member)
    assert not (await town.ask(auth.revoke_api_key, auth.RevokeApiKey(str(bens.key.id)), owner)).is_active


async def test_who_is_no_member_makes_no_key_for_an_organisation(town: Town) -> None:
    _, _, owner, _ = await team(town)
    organisation = (await town.principal((await town.key(owner)).api_key)).team_id
    mallory = await town.person("mallory")
    with pytest.raises(errors.BadRequest):
        await town.key(town.login(mallory.user, organisation))
