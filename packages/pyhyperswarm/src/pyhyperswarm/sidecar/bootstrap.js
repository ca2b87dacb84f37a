'use strict'
// Runs the nodes of a private DHT, several in one process, because a single node cannot introduce peers to each other.
// node bootstrap.js '{"host": "203.0.113.5", "bind": "0.0.0.0", "ports": [4737, 4738, 4739]}'   prints {"nodes": [{"host", "port"}, ...]}
// "bootstrap": [{"host", "port"}, ...] adds the nodes to the DHT of others, so that it survives the loss of either machine.
// host is the address for other machines, bind (default: host) the local one. A node's id is a hash of its address and must match it, so
// the nodes are recreated when the host's name resolves to a new address.

const DHT = require('hyperdht')
const companion = require('./companion')

companion(async ({ host, address, bind, ports, bootstrap: others = [] }) => {
  const nodes = []
  for (const port of ports) {
    const bootstrap = nodes.length > 0 ? [{ host: address, port: ports[0] }] : others
    nodes.push(DHT.bootstrapper(port, address, { host: bind ?? address, bootstrap }))
    await nodes.at(-1).fullyBootstrapped()
  }
  const ready = { nodes: ports.map((port) => ({ host, port })) }
  return { ready, close: () => Promise.all(nodes.map((node) => node.destroy({ force: true }))) }
})
