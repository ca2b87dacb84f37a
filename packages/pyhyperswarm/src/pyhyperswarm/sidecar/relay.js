'use strict'
// A blind relay for peers without a direct path. Streams are encrypted end to end, so it cannot read them.
// node relay.js '{"seedFile": "path", "host": "203.0.113.5", "port": 4740, "bootstrap": [{"host", "port"}]}'   prints {"key", "host", "port"}
// host and bind are as in bootstrap.js.
// The file has the seed as 64 hex digits. It is not an argument, because every user of a machine can read those ("seed" is for tests).

const { readFileSync } = require('node:fs')
const DHT = require('hyperdht')
const { Server } = require('blind-relay')
const companion = require('./companion')
const { isRemembered } = require('./network')

/** How often to check that DHT nodes still know us. The library checks every five minutes. */
const MEMORY_MS = 3000

companion(async ({ seedFile, seed, host, address, bind, port, bootstrap }) => {
  const hex = seedFile === undefined ? seed : readFileSync(seedFile, 'utf8').trim()
  // A configured port is probably open in a firewall, so no other port will do.
  const dht = new DHT({ host: bind ?? address, port: port || [0, 0], anyPort: !port, bootstrap: bootstrap ?? undefined, firewalled: false })
  const relay = new Server({ createStream: (options) => dht.createRawStream({ ...options, framed: true }) })
  const server = dht.createServer({ shareLocalAddress: false }, (stream) => {
    stream.on('error', () => {}) // the peer is gone, which ends its session
    relay.accept(stream, { id: stream.remotePublicKey }).on('error', () => {})
  })
  const keyPair = DHT.keyPair(Buffer.from(hex, 'hex'))
  await server.listen(keyPair)
  const memory = setInterval(async () => (await isRemembered(dht, server)) || server.refresh(), MEMORY_MS)
  const ready = { key: keyPair.publicKey.toString('hex'), host, port: dht.io.serverSocket.address().port }
  const close = (isMoving = false) => {
    clearInterval(memory)
    return isMoving ? dht.destroy({ force: true }) : relay.close().then(() => dht.destroy())
  }
  return { ready, close }
})
