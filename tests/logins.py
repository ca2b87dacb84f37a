"""Answers a NATS server's auth callouts as auth does, without auth's stores."""

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from services.auth.nodes import nats_callout
from services.auth.nodes.nats_callout import Allow, LoginTrust
from services.auth.nodes.nats_jwt import NatsIssuer
from services.auth.nodes.nats_logins import ACCOUNT, CALLOUTS
from shared.identity import node_keys
from shared.node.lifecycle import background
from shared.protocol import topics
from shared.transports.nats.nats_client import NatsClient
from shared.transports.nats.server_connection import NatsMessage
from stack.stack_home import StackHome
from tests.testnet import MESH


@asynccontextmanager
async def answered(home: StackHome, url: str, trust: LoginTrust) -> AsyncIterator[None]:
    """Answer with the home's keys while the block runs."""
    issuer = NatsIssuer(node_keys.load_authority(home.secrets / "nats_issuer.nk"))
    client = NatsClient(url, node_keys.load(home.secrets / "nats_callout.nk"), name="auth")

    def answer(message: NatsMessage) -> None:
        request, now, jwt = nats_callout.read_request(message.payload), int(time.time()), ""
        login = nats_callout.decide(request, trust, now)
        if isinstance(login, Allow):
            rights = topics.permissions(MESH, login.role, login.node)
            jwt = issuer.grant(request.user_nkey, login.node, ACCOUNT, rights, now=now, until=login.until)
        said = issuer.answer(request.user_nkey, request.server_id.id, now=now, jwt=jwt, error="" if jwt else "no")
        client.publish(message.reply.decode(), said)

    client.subscribe(CALLOUTS, answer, queue="auth")
    await client.connect(deadline_seconds=30)
    await client.flush(deadline_seconds=30)
    async with background() as tasks:
        tasks.create_task(client.run())
        yield
    await client.close()
