"""What callers learn when the NATS server stops, instead of a peer."""

import math
import signal

import pytest

from shared import errors
from shared.api import inference
from shared.timing import retry_policy
from shared.types import Role
from tests.shared.rpc.test_mesh import Gateway, Worker, prompt
from tests.testnet import testnet, until


async def test_links_that_fall_silent_with_the_nats_server_say_so() -> None:
    async with testnet() as net:
        await net.start(Worker)
        gateway = await net.start(Gateway)
        async with gateway.node.rpc.stream(inference.process_prompt, prompt("hang", 1)) as answer:
            await anext(answer)
            net.server.signal(signal.SIGSTOP)
            try:
                with pytest.raises(errors.TransportLost, match="the NATS server has been silent"):
                    await anext(answer)
            finally:
                net.server.signal(signal.SIGCONT)


async def test_a_silent_worker_is_told_apart_from_a_silent_nats_server() -> None:
    async with testnet() as net:
        worker = await net.start(Worker)
        gateway = await net.start(Gateway)
        async with gateway.node.rpc.stream(inference.process_prompt, prompt("hang", 1)) as answer:
            await anext(answer)
            await worker.cut()
            with pytest.raises(errors.LinkLost, match=r"worker .* has been silent") as caught:
                await anext(answer)
            assert not isinstance(caught.value, errors.TransportLost)


def test_clients_retry_after_a_lost_transport_as_after_a_lost_link() -> None:
    told = errors.from_problem(errors.TransportLost("the NATS server has been silent").to_problem())
    assert type(told) is errors.LinkLost
    assert told.code in retry_policy.PASSING


@pytest.mark.parametrize("is_killed", [True, False], ids=["killed", "silent"])
async def test_nodes_behind_a_lost_nats_server_stay_known_and_are_called_once_they_are_heard_again(is_killed: bool) -> None:
    async with testnet() as net:
        worker = await net.start(Worker)
        gateway = (await net.start(Gateway)).node
        await until(lambda: gateway.directory.reachable(Role.WORKER))
        assert gateway.node_transports.nats_back_at == -math.inf
        if is_killed:
            net.server.kill()
        else:
            net.server.signal(signal.SIGSTOP)
        await until(lambda: not gateway.directory.reachable(Role.WORKER), seconds=10)
        assert gateway.node_transports.nats_back_at == math.inf
        assert [entry.node for entry in gateway.directory.usable(Role.WORKER)] == [worker.node.id]
        if is_killed:
            net.server.start()
        else:
            net.server.signal(signal.SIGCONT)
        await until(lambda: gateway.directory.reachable(Role.WORKER), seconds=10)
        await until(lambda: abs(gateway.node_transports.nats_back_at) < math.inf)
        async with gateway.rpc.stream(inference.process_prompt, prompt("hang", 1)) as answer:
            await anext(answer)
