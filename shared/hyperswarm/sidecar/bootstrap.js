'use strict'
// The nodes of a DHT of one's own, several in one process: a single node introduces nobody to anybody.
// node bootstrap.js '{"host": "203.0.113.5", "bind": "0.0.0.0", "ports": [4737, 4738, 4739]}'   prints {"nodes": [{"host", "port"}, ...]}
// "bootstrap": [{"host", "port"}, ...] adds them to the DHT of other nodes, so that it lives on when either machine is gone.
// host is what the others reach them by; bind (without it, host) what this machine knows as its own. host may be a name: a node's
// id is a hash of its address, and nobody believes another one, so when the name gets another address the nodes are made anew.

const { isIPv4 } = require('node:net')
const { setTimeout: sleep } = require('node:timers/promises')
const DHT = require('hyperdht')
const companion = require('./companion')
const { Names } = require('./names')

/** How often a name is looked up again. */
const FOLLOW_MS = 5000

companion(async ({ host, bind, ports, bootstrap: others = [] }) => {
  const names = new Names()
  const nodes = []
  let address

  async function open() {
    for (const port of ports) {
      const bootstrap = nodes.length > 0 ? [{ host: address, port: ports[0] }] : others
      nodes.push(DHT.bootstrapper(port, address, { host: bind ?? address, bootstrap }))
      await nodes.at(-1).fullyBootstrapped()
    }
  }
  const close = () => Promise.all(nodes.splice(0).map((node) => node.destroy({ force: true })))

  /** Rejects when the ports cannot be bound again, which ends the program. */
  async function follow() {
    for (;;) {
      await sleep(FOLLOW_MS)
      const found = await names.addressesOf(host)
      if (found.includes(address)) continue
      await close()
      address = found[0]
      await open()
    }
  }

  address = (await names.addressesOf(host))[0]
  if (address === undefined) throw new Error(`${host} has no IPv4 address`)
  await open()
  if (!isIPv4(host)) follow()
  return { ready: { nodes: ports.map((port) => ({ host, port })) }, close }
})
