"""Keys of an organization: on whose behalf they act, and who sees and ends them."""

import pytest

from services.auth.accounts.api_key_rpc import NO_SUCH_KEY
from shared import errors
from shared.api import auth
from shared.types import Credential
from tests.services.auth.organizations.seeded_database import Person, SeededDb


def _names(keys: tuple[auth.ApiKey, ...]) -> set[str]:
    return {key.name for key in keys}


async def team(seeded_db: SeededDb) -> tuple[Person, Person, Credential, Credential]:
    """Return an owner, a member, and for each a login that acts for the organization."""
    anna, ben = await seeded_db.person("anna"), await seeded_db.person("ben")
    acme = await seeded_db.found(anna)
    return anna, ben, seeded_db.login(anna.user, acme.id), await seeded_db.join(anna, acme, ben)


async def test_a_key_created_for_an_organisation_acts_for_it(seeded_db: SeededDb) -> None:
    anna, _, owner, _ = await team(seeded_db)
    made = await seeded_db.key(owner)
    found = await seeded_db.principal(made.api_key)
    assert made.key.team_id == found.team_id == found.tenant_id
    assert found.team_id is not None
    assert found.user_id == anna.user.id
    assert (await seeded_db.key(made.api_key, "heir")).key.team_id == found.team_id, "a key of an organisation makes keys of it"


async def test_an_owner_sees_all_keys_of_the_organisation_and_a_member_their_own(seeded_db: SeededDb) -> None:
    anna, ben, owner, member = await team(seeded_db)
    await seeded_db.key(owner, "annas")
    bens = await seeded_db.key(member, "bens")
    await seeded_db.key(anna.login, "annas own")
    await seeded_db.key(ben.login, "bens own")
    assert _names(await seeded_db.keys(owner)) == {"annas", "bens"}
    assert _names(await seeded_db.keys(member)) == {"bens"}
    assert _names(await seeded_db.keys(anna.login)) == {"annas own"}
    assert _names(await seeded_db.keys(bens.api_key)) == {"bens"}, "a key of an organisation knows nothing of its user's own"
    boss = await seeded_db.admin()
    assert _names((await seeded_db.ask(auth.list_api_keys, auth.ListApiKeys(ben.user.id), boss.login)).keys) == {"bens", "bens own"}


async def test_an_owner_revokes_a_members_key_but_cannot_take_it_over(seeded_db: SeededDb) -> None:
    _, _, owner, member = await team(seeded_db)
    bens = await seeded_db.key(member, "bens")
    for method, request in (
        (auth.rotate_api_key, auth.RotateApiKey(str(bens.key.id))),
        (auth.rename_api_key, auth.RenameApiKey(str(bens.key.id), "mine")),
    ):
        with pytest.raises(errors.NotAllowed, match="its owner"):
            await seeded_db.ask(method, request, owner)  # type: ignore[misc]  # a union of pairs
    annas = await seeded_db.key(owner, "annas")
    with pytest.raises(errors.NotFound, match=NO_SUCH_KEY):
        await seeded_db.ask(auth.revoke_api_key, auth.RevokeApiKey(str(annas.key.id)), member)
    assert not (await seeded_db.ask(auth.revoke_api_key, auth.RevokeApiKey(str(bens.key.id)), owner)).is_active


async def test_a_user_outside_an_organisation_creates_no_key_for_it(seeded_db: SeededDb) -> None:
    _, _, owner, _ = await team(seeded_db)
    organisation = (await seeded_db.principal((await seeded_db.key(owner)).api_key)).team_id
    mallory = await seeded_db.person("mallory")
    with pytest.raises(
        errors.BadRequest, match="there are already 100 active keys here, or you are no longer a member of this organization"
    ):
        await seeded_db.key(seeded_db.login(mallory.user, organisation))
