"""auth has no more series with more users: it counts what is called and how it ended, never by user."""

import asyncio
import contextlib
import re
from typing import ClassVar
from uuid import uuid4

import msgspec

from services.auth.service import AuthService
from services.auth.settings import AuthSettings
from shared import errors
from shared.api import auth
from shared.types import Credential, Role, UserId
from tests import tiers
from tests.services.auth import by_hand
from tests.services.auth.surroundings import ADMIN_PASSWORD
from tests.testnet import MESH, IdleService, RunningNode, testnet

TENANTS = tiers.volume(100, least=30)
FEW = 10
AT_ONCE = 10
#: The limit for one service, from OBSERVABILITY.md §6.2.
MAX_SERIES = 10_000
REGISTERED = """
    INSERT INTO auth.users (id, username, email)
    SELECT id, 'user' || n, n || '@example.com' FROM unnest($1::uuid[]) WITH ORDINALITY AS new (id, n)
"""


class Gateway(IdleService):
    """A node that only calls."""

    role: ClassVar[Role] = Role.GATEWAY


#: Series of what tenants do. Those of calls between nodes appear at any time.
OF_TENANTS = re.compile(r'method="(?:generateApiKey|validateApiKey|identify)"|auth_failures|keys_created')


def _series(running: RunningNode) -> set[str]:
    text = running.node.metrics.render()
    return {line.rpartition(" ")[0] for line in text.split("\n") if line and not line.startswith("#")}


def _of_tenants(series: set[str]) -> set[str]:
    return {one for one in series if OF_TENANTS.search(one)}


async def test_many_tenants_create_no_more_series_than_a_few(settings: AuthSettings) -> None:
    async with testnet() as net:
        key_file = net.server.key("auth", Role.AUTH)
        on_mesh = msgspec.structs.replace(settings, mesh=MESH, nats_url=net.server.url, node_key_file=key_file)
        running = await net.start(AuthService, on_mesh)
        gateway, client = await net.start(Gateway), await net.client()
        session = await client.rpc.call(auth.login_user, auth.LoginUser(auth.Credentials(ADMIN_PASSWORD, username="admin")))
        # Inserted by hand, because hashing passwords takes time and registrations are limited.
        people = [UserId(uuid4()) for _ in range(TENANTS)]
        await by_hand.run(settings.database_url, REGISTERED, people)

        async def come(person: UserId) -> None:
            new = await client.rpc.call(auth.generate_api_key, auth.GenerateApiKey(user_id=person), credential=session.access_token)
            principal = await gateway.node.rpc.call(auth.validate_api_key, auth.ValidateApiKey(new.api_key))
            assert principal.user_id == person
            for refused in (f"{new.api_key[:-8]}AAAAAAAA", f"no key of {person}", f"a.{person.hex}.c"):
                with contextlib.suppress(errors.AimeshError):
                    await gateway.node.rpc.call(auth.identify, auth.Identify(Credential(refused)))

        for person in people[:FEW]:
            await come(person)
        few = _of_tenants(_series(running))
        for first in range(FEW, TENANTS, AT_ONCE):
            await asyncio.gather(*(come(person) for person in people[first : first + AT_ONCE]))
        assert running.node.metrics.registry.get_sample_value("ai_platform_keys_created_total") == TENANTS
        assert few
        assert _of_tenants(_series(running)) == few
        assert len(_series(running)) <= MAX_SERIES
