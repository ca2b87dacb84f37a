"""What a machine's own servers add to the gateway: it tells their workers when a name is taken."""

from collections.abc import Iterator
from datetime import UTC, datetime

from features.front import contract
from features.front.contract import Build
from features.front.rules import same_names
from features.front.rules.same_names import Offered, Offerer
from services.gateway.features import Built, GatewayPart, Site
from shared.protocol.directory import Directory, DirectoryEntry
from shared.rpc import RpcCall, serves
from shared.types import Role


class Names:
    def __init__(self, directory: Directory) -> None:
        self._directory = directory

    @serves(contract.name_models)
    async def name(self, request: contract.NameModels, call: RpcCall) -> contract.ModelNames:
        known = self._directory.find(call.caller.node)
        # A worker whose announcement has not come is the youngest.
        asker = Offerer(node=call.caller.node, owner="", started_at=datetime.now(UTC)) if known is None else _offerer(known)
        return contract.ModelNames(tuple(same_names.names_of(request.builds, request.machine, asker, self._offers())))

    def _offers(self) -> Iterator[Offered]:
        for entry in self._directory.entries(Role.WORKER):
            if entry.alive:
                by = _offerer(entry)
                for offer in entry.announcement.models:
                    build = Build(offer.name, offer.digest, offer.quantization)
                    yield Offered(build=build, by=by, is_upstream=offer.is_upstream)


def _offerer(entry: DirectoryEntry) -> Offerer:
    return Offerer(node=entry.node, owner=entry.announcement.owner, started_at=entry.announcement.started_at)


def _build(site: Site) -> Built:
    return Built(served=[Names(site.node.directory)])


PART = GatewayPart(_build)
