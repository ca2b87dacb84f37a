'use strict'
// The nodes of a DHT of one's own, several in one process: a single node introduces nobody to anybody.
// node bootstrap.js '{"host": "203.0.113.5", "bind": "0.0.0.0", "ports": [4737, 4738, 4739]}'   prints {"nodes": [{"host", "port"}, ...]}
// "bootstrap": [{"host", "port"}, ...] adds them to the DHT of other nodes, so that it lives on when either machine is gone.
// host is what the others reach them by; bind (without it, host) what this machine knows as its own. A node's id is a hash of its address,
// and nobody believes another one: when a host's name moves, the nodes are made anew.

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
