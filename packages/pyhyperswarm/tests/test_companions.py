"""The programs through which other machines find the mesh, when the DNS name of their machine gets a new address."""

import asyncio
import json
from pathlib import Path

from pyhyperswarm import dht, find_node

#: Replaces the resolver's answer with a file's content, and prints each answer.
RESOLVER = """
const { Names } = require(process.env.NAMES)
Names.prototype.addressesOf = async (host) => {
  if (host !== 'house.test') return [host]
  const address = require('node:fs').readFileSync(process.env.ADDRESS_FILE, 'utf8')
  process.stderr.write(`${address}\\n`)
  return [address]
}
"""
#: The relay only has to believe that others reach it there (RFC 5737).
HERE, THERE = "192.0.2.1", "192.0.2.2"


async def test_a_relay_moves_together_with_the_dht_nodes_that_announced_it(tmp_path: Path) -> None:
    """The DHT nodes do not answer the relay's shutdown message, and its port must be free at once."""
    resolver, address_file = tmp_path / "resolver.js", tmp_path / "address"
    resolver.write_text(RESOLVER)
    address_file.write_text(HERE)
    (port,) = dht.free_ports(1)
    async with dht.dht() as nodes:
        told = [{"host": node.host, "port": node.port} for node in nodes]
        options = {"seed": "07" * 32, "host": "house.test", "bind": "0.0.0.0", "port": port, "bootstrap": told}
        relay = await asyncio.create_subprocess_exec(
            find_node(), "--require", resolver, dht.SIDECAR / "relay.js", json.dumps(options),
            env={"NAMES": str(dht.SIDECAR / "names.js"), "ADDRESS_FILE": str(address_file)},
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        assert relay.stdin is not None
        assert relay.stdout is not None
        assert relay.stderr is not None
        async with asyncio.timeout(60):
            ready = json.loads(await relay.stdout.readline())
    try:
        address_file.write_text(THERE)
        said = []
        async with asyncio.timeout(60):
            # After it has moved, it resolves the name again.
            while said.count(THERE) < 2 and (line := await relay.stderr.readline()):
                said.append(line.decode().strip())
        assert said.count(THERE) == 2, said
        assert relay.returncode is None
        assert ready["port"] == port
    finally:
        relay.stdin.close()
        await relay.wait()
