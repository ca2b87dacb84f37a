"""Keeps on disk which DHT nodes were there: with them a node finds the mesh again when those that it was told of are gone."""

import asyncio
import time

from shared.node.certificate_renewal import CertificateRenewal
from shared.transports.swarm_link import SwarmTransport

#: The DHT changes slowly, and what was kept is good for a day.
EVERY_SECONDS = 600.0
#: Until somebody has been met, nobody knows whether these nodes are of any use.
LOOK_SECONDS = 0.2


class DhtNodeCache:
    def __init__(self, swarm: SwarmTransport, standing: CertificateRenewal) -> None:
        self._swarm = swarm
        self._standing = standing

    async def run(self) -> None:
        """Ends by cancellation. A client's process is over long before the second round, so it keeps what it kept if that is young."""
        age = time.time() - self._standing.kept.nodes_seen_at
        await asyncio.sleep(max(0.0, min(EVERY_SECONDS, EVERY_SECONDS - age)))
        while True:
            while not self._swarm.links():  # noqa: ASYNC110 - links come and go, and nobody is told here
                await asyncio.sleep(LOOK_SECONDS)
            nodes = await self._swarm.dht_nodes()
            if nodes:
                self._standing.remember(nodes, time.time())
            await asyncio.sleep(EVERY_SECONDS)
