"""A worker of someone else that tries to read a model which its owner may not read.

python -m tests.chaos.thief

It is services.inference with the backend ``echo``, but serves another model, and its items fail like those of ``odd_service``.
"""

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TextIO

import msgspec

from services.inference import __main__ as inference
from services.inference import service
from services.inference.backends import echo
from services.inference.settings import InferenceSettings
from shared import errors
from shared.api import model_copies, model_trust
from shared.api.model_copies import FindModelPeers, LeaseBlocks, ReadBlob
from shared.background.tasks import keep
from shared.node import Node
from shared.types import ModelName, NodeId, Role
from tests.chaos import odd_service

#: The variable that holds a ``Theft`` as JSON.
THEFT = "CHAOS_THEFT"
READ, REFUSED = "read", "refused"
_EVERY_SECONDS, _DEADLINE_SECONDS = 0.5, 10.0


class Theft(msgspec.Struct, frozen=True):
    #: Gets a line for each attempt: how it ended, and the method.
    report: str
    model: ModelName
    #: Of its files and its manifest, the weights first.
    digests: tuple[str, ...]


class _Thief(service.InferenceService):
    @classmethod
    @asynccontextmanager
    async def open(cls, settings: InferenceSettings, node: Node) -> AsyncIterator[service.InferenceService]:
        theft = msgspec.json.decode(os.environ[THEFT], type=Theft)
        node.tasks.create_task(keep("theft", lambda: _steal(node, theft)))
        async with super().open(settings, node) as opened:
            yield opened


async def _steal(node: Node, theft: Theft) -> None:
    """Try all ways to read the model, at each gateway in turn, until canceled."""
    with Path(theft.report).open("a", buffering=1, encoding="ascii") as report:  # noqa: ASYNC230 - a line at a time
        await _report_attempts(node, theft, report)


async def _report_attempts(node: Node, theft: Theft, report: TextIO) -> None:
    while True:
        for gateway in list(node.directory.usable(Role.GATEWAY)):
            for name, way in WAYS.items():
                try:
                    said = READ if await way(node, theft, gateway.node) else REFUSED
                except errors.NotFound:
                    said = REFUSED
                except errors.AimeshError as error:
                    said = error.code
                report.write(f"{said} {name}\n")
        await asyncio.sleep(_EVERY_SECONDS)


async def _read_blobs(node: Node, theft: Theft, gateway: NodeId) -> bool:
    for digest in theft.digests:
        request = ReadBlob(digest, 0, 1)
        async with node.rpc.stream(model_copies.read_blob, request, to=gateway, deadline_seconds=_DEADLINE_SECONDS) as parts:
            if any([part.data async for part in parts]):
                return True
    return False


async def _take_trust(node: Node, theft: Theft, gateway: NodeId) -> bool:
    request = model_trust.TakeTrust((theft.model,))
    return bool((await node.rpc.call(model_trust.take_trust, request, to=gateway, deadline_seconds=_DEADLINE_SECONDS)).versions)


async def _find_peers(node: Node, theft: Theft, gateway: NodeId) -> bool:
    request = FindModelPeers(theft.digests[0], theft.model)
    await node.rpc.call(model_copies.find_model_peers, request, to=gateway, deadline_seconds=_DEADLINE_SECONDS)
    return True


async def _lease_blocks(node: Node, theft: Theft, gateway: NodeId) -> bool:
    request = LeaseBlocks(theft.digests[0], 1, had=b"")
    await node.rpc.call(model_copies.lease_blocks, request, to=gateway, deadline_seconds=_DEADLINE_SECONDS)
    return True


#: By the names of the methods.
WAYS: dict[str, Callable[[Node, Theft, NodeId], Awaitable[bool]]] = {
    model_copies.read_blob.name: _read_blobs,
    model_trust.take_trust.name: _take_trust,
    model_copies.find_model_peers.name: _find_peers,
    model_copies.lease_blocks.name: _lease_blocks,
}


def main() -> None:
    odd_service.throw_in_odd_items()
    setattr(echo, "MODEL", ModelName("thief"))  # noqa: B010 - mypy rejects an assignment
    setattr(service, "InferenceService", _Thief)  # noqa: B010
    inference.main()


if __name__ == "__main__":
    main()
