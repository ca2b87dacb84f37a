"""Real workers on a private DHT that copy from each other: with grants alone, and without calling each other."""

import importlib
import pkgutil
import time
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import pytest
from pyhyperswarm.block_copies import CopyFile, Ending

from services.inference.models.model_copy import ModelShare
from shared import api, errors, rpc
from shared.api.method import Method, StreamMethod
from shared.identity import certificates, copy_grants, node_keys
from shared.identity.certificates import Subject
from shared.identity.copy_grants import LIFETIME_SECONDS
from shared.identity.trust import Trust
from shared.protocol.wire import Call
from shared.transports.swarm_link import SwarmLink
from shared.types import Role
from tests.services.inference.models.copying import Source, make_source
from tests.swarmnet import SwarmNet, swarmnet
from tests.testnet import IdleService, RunningNode, until

OTHER_DIGEST = bytes(32)


async def two_workers(net: SwarmNet) -> tuple[RunningNode, RunningNode]:
    one, other = await net.start(IdleService), await net.start(IdleService)
    for each in (one, other):
        swarm = each.node.node_transports.swarm
        await until(lambda swarm=swarm: swarm.connected, seconds=30)  # type: ignore[misc]
    return one, other


def gateway_of(net: SwarmNet, role: Role = Role.GATEWAY) -> Trust:
    trust = Trust(node_keys.NodeKey(node_keys.new_seed()), role, (net.ca.id,))
    trust.certificate = certificates.issue(net.ca, Subject(trust.me.id, role), time.time())
    return trust


@dataclass
class Listener:
    """Records what becomes of one file."""

    has: list[int] = field(default_factory=list)
    endings: list[Ending] = field(default_factory=list)
    stored: set[int] = field(default_factory=set)

    def peer_has(self, key: bytes, blocks: int, queue: int) -> None:
        self.has.append(blocks)

    def peer_refused(self, key: bytes, block: int) -> None: ...

    def peer_ended(self, key: bytes, ending: Ending, why: str) -> None:
        self.endings.append(ending)

    def block_stored(self, key: bytes, block: int) -> None:
        self.stored.add(block)

    def copy_stopped(self, why: str) -> None: ...


async def watch(reader: RunningNode, holder: RunningNode, source: Source, grant: bytes) -> tuple[Listener, CopyFile]:
    file, heard = CopyFile(source.digest, len(source.body), source.folder / "blocks", source.folder / "partial"), Listener()
    copies = reader.node.copies
    await copies.open(file, file.prepare(), heard)
    copies.watch(source.digest, node_keys.raw_of(holder.node.id), grant)
    return heard, file


def share(holder: RunningNode, source: Source, *, shares: bool = True) -> None:
    ModelShare(holder.node.copies, holder.node.trust, lambda digest: source.whole if digest == source.digest else None, shares=shares)


def granted(reader: RunningNode, holder: RunningNode, source: Source, gateway: Trust, *, age: float = 0) -> bytes:
    return copy_grants.issue(gateway, reader.node.id, holder.node.id, source.digest, time.time() - age)


async def test_a_worker_reads_from_another_one_with_a_gateway_s_grant_until_it_is_revoked(tmp_path: Path) -> None:
    source = make_source(tmp_path, 2)
    async with swarmnet() as net:
        holder, reader = await two_workers(net)
        share(holder, source)
        heard, file = await watch(reader, holder, source, granted(reader, holder, source, gateway_of(net)))
        await until(lambda: bool(heard.has), seconds=30)
        assert heard.has == [0b11]
        reader.node.copies.ask(source.digest, node_keys.raw_of(holder.node.id), 0)
        await until(lambda: heard.stored == {0}, seconds=30)
        assert file.partial.read_bytes()[: 1 << 20] == source.block(0)
        net.revoke(reader.node.id, at=holder)
        await until(lambda: Ending.GONE in heard.endings, seconds=30)


@pytest.mark.parametrize(
    "kind", ["forged", "expired", "of another file", "of a worker", "of a revoked gateway", "with sharing off", "of no model here"]
)
async def test_what_is_no_valid_grant_is_denied(tmp_path: Path, kind: str) -> None:
    source = make_source(tmp_path, 2)
    async with swarmnet() as net:
        holder, reader = await two_workers(net)
        share(holder, source, shares=kind != "with sharing off")
        gateway = gateway_of(net)
        body = granted(reader, holder, source, gateway)
        if kind == "forged":
            body = body[:-1] + bytes([body[-1] ^ 1])
        elif kind == "expired":
            body = granted(reader, holder, source, gateway, age=LIFETIME_SECONDS + 120)
        elif kind == "of another file":
            body = copy_grants.issue(gateway, reader.node.id, holder.node.id, OTHER_DIGEST, time.time())
        elif kind == "of a worker":
            body = granted(reader, holder, source, reader.node.trust)
        elif kind == "of a revoked gateway":
            net.revoke(gateway.me.id, at=holder)
        elif kind == "of no model here":
            ModelShare(holder.node.copies, holder.node.trust, lambda digest: None)
        heard, _ = await watch(reader, holder, source, body)
        await until(lambda: bool(heard.endings), seconds=30)
        assert (heard.endings, heard.has) == ([Ending.DENIED], [])
        assert not reader.node.copies._watched, "the caller asks for another grant"


def every_method() -> list[Method | StreamMethod]:
    modules = [importlib.import_module(f"shared.api.{found.name}") for found in pkgutil.iter_modules(api.__path__)]
    return list(
        {value.name: value for module in modules for value in vars(module).values() if isinstance(value, Method | StreamMethod)}.values()
    )


class Answer:
    """What a call brings."""

    def __init__(self) -> None:
        self.error: errors.AimeshError | None = None

    def received(self, message: object) -> None:
        raise AssertionError(f"a worker answered another one: {message}")

    def failed(self, error: errors.AimeshError) -> None:
        self.error = error


async def test_workers_that_are_linked_cannot_call_any_method_of_each_other(tmp_path: Path) -> None:
    source = make_source(tmp_path, 1)

    async def handle(service: object, request: object, call: object) -> None:
        raise AssertionError("it was called")

    methods = every_method()
    assert len(methods) > 100
    async with swarmnet() as net:
        holder, reader = await two_workers(net)
        served = {method.name for method in holder.node.dispatcher.methods}
        names = {
            f"handle_{number}": rpc.serves(method)(partial(handle)) for number, method in enumerate(methods) if method.name not in served
        }
        holder.node.dispatcher.add(type("Everything", (), names)())
        share(holder, source)
        heard, _ = await watch(reader, holder, source, granted(reader, holder, source, gateway_of(net)))
        await until(lambda: bool(heard.has), seconds=30)
        for caller, callee in ((reader, holder), (holder, reader)):
            transports = caller.node.node_transports
            await until(lambda: transports.swarm is not None and transports.swarm.find(callee.node.id) is not None)  # noqa: B023 - awaited here
            with pytest.raises(errors.WrongRole):
                await transports.reach(link_of(caller, callee).peer, "swarm")
            assert transports.find(Role.WORKER) is None
        [connection] = [each for each in reader.node.node_transports.connections() if each.peer.node == holder.node.id]
        answers = {}
        for method in methods:
            answers[method.name] = Answer()
            connection.ask(
                Call(connection.next_id(), method.name, 10_000, b""), answers[method.name], streaming=isinstance(method, StreamMethod)
            )
            await until(lambda: answers[method.name].error is not None)  # noqa: B023 - awaited here
        assert {errors.code_of(answer.error) for answer in answers.values() if answer.error} == {errors.UnknownMethod.code}
        assert link_of(reader, holder).closed is None


def link_of(node: RunningNode, peer: RunningNode) -> SwarmLink:
    swarm = node.node.node_transports.swarm
    assert swarm is not None
    link = swarm.find(peer.node.id)
    assert isinstance(link, SwarmLink)
    return link
