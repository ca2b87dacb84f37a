"""Administrators see what failed in auth's background work, and let it be tried again."""

import pytest

from services.auth.settings import AuthSettings
from shared import errors
from shared.api import deferral
from tests.services.auth import by_hand
from tests.services.auth.surroundings import Surroundings


async def test_only_an_administrator_lists_and_retries(world: Surroundings, settings: AuthSettings) -> None:
    await world.register()
    login = (await world.login()).access_token
    statement = "INSERT INTO auth.deferred_items VALUES ('erasure', 'one', 10, NULL, 'ValueError')"
    await by_hand.run(settings.database_url, statement)
    for method, request in (
        (deferral.list_of_auth, deferral.ListDeferredItems()),
        (deferral.retry_at_auth, deferral.RetryDeferredItems()),
    ):
        with pytest.raises(errors.NotAllowed, match="administrator"):
            await world.ask(method, request, login)  # type: ignore[arg-type]
    (listed,) = (await world.administer(deferral.list_of_auth, deferral.ListDeferredItems("erasure"))).items
    assert (listed.service, listed.id, listed.next_at) == ("auth", "one", None)
    assert await world.administer(deferral.retry_at_auth, deferral.RetryDeferredItems("erasure")) == deferral.RetriedItems(1)
    (listed,) = (await world.administer(deferral.list_of_auth, deferral.ListDeferredItems())).items
    assert (listed.tries, listed.next_at is None) == (0, False)
