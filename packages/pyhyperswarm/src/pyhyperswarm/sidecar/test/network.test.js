'use strict'
const assert = require('node:assert/strict')
const { after, before, test } = require('node:test')
const createTestnet = require('hyperdht/testnet')
const DHT = require('hyperdht')
const { open } = require('../network')

let testnet
const swarms = []

before(async () => {
  testnet = await createTestnet(3)
})

after(async () => {
  await Promise.all(swarms.map((swarm) => swarm.destroy()))
  await testnet.destroy()
})

function swarm(options) {
  const settings = { bootstrap: testnet.bootstrap, host: '127.0.0.1', open: true, relays: [], ...options }
  const made = open(DHT.keyPair(), settings)
  made.on('connection', (stream) => stream.on('error', () => {}))
  swarms.push(made)
  return made
}

const next = (emitter, event) => new Promise((resolve) => emitter.once(event, (...found) => resolve(found)))
const topicOf = (byte) => Buffer.alloc(32, byte)

test('a connection on loopback is direct, and its dial is forgotten', async () => {
  const [host, guest] = [swarm(), swarm()]
  await host.join(topicOf(1)).flushed()
  guest.join(topicOf(1), { server: false })
  const [stream] = await next(guest, 'connection')
  assert.equal(guest.dht.pathOf(stream), 'direct')
  assert.equal(guest.dht.dials.size, 0)
})

test('a path by a relay counts as relayed, a path by a separate socket as punched', () => {
  const { dht } = swarm()
  const route = { socket: {}, remoteHost: '203.0.113.5', remotePort: 4740 }
  assert.equal(dht.pathOf({ rawStream: route }), 'punched')
  dht.relayStreams.add({ rawStream: null }).add({ rawStream: { ...route } })
  assert.equal(dht.pathOf({ rawStream: route }), 'relayed')
  assert.equal(dht.pathOf({ rawStream: { ...route, remotePort: 1 } }), 'punched')
})

test('a failed dial reports the peer and the reason', async () => {
  const guest = swarm()
  const nobody = DHT.keyPair().publicKey
  guest.joinPeer(nobody)
  const [key, error] = await next(guest.dht, 'dial-failed')
  assert.deepEqual(key, nobody)
  assert.equal(error.code, 'PEER_NOT_FOUND')
})

test('who is refused gets no connection and leaves no record', async () => {
  const [host, guest] = [swarm(), swarm()]
  host.deny([guest.keyPair.publicKey.toString('hex')])
  await host.join(topicOf(2), { client: false }).flushed()
  guest.join(topicOf(2), { server: false })
  const [key] = await next(host, 'refused')
  assert.deepEqual(key, guest.keyPair.publicKey)
  assert.equal(host.connections.size, 0)
  assert.equal(host.peers.size, 0)
})

test('a dial that hangs does not shut out the peer who dials us', async () => {
  const [host, guest] = [swarm(), swarm()]
  await host.join(topicOf(3), { client: false }).flushed()
  const hanging = host.dht.connect(guest.keyPair.publicKey, { keyPair: host.keyPair })
  hanging.on('error', () => {})
  host._allConnections.add(hanging)
  hanging.once('close', () => host._allConnections.delete(hanging))
  host.dht.dials.set(hanging, { since: Date.now() - 5000, failure: null })
  guest.join(topicOf(3), { server: false })
  const [stream] = await next(host, 'connection')
  assert.deepEqual(stream.remotePublicKey, guest.keyPair.publicKey)
  assert(hanging.destroying)
})

test('with nodes that answer we are online, without we are not', async () => {
  const [joined, lonely] = [swarm(), swarm({ bootstrap: [] })]
  await joined.dht.fullyBootstrapped()
  assert.equal(await joined.isOnline(), true)
  assert.equal(await lonely.isOnline(), false)
})

test('former addresses are asked only when nobody else answers', async () => {
  const dead = { host: '127.0.0.1', port: 1 }
  const made = swarm({ bootstrap: [dead], older: testnet.bootstrap })
  const bootstrapNodes = async () => {
    const found = []
    for await (const { host, port } of made.dht._resolveBootstrapNodes()) found.push({ host, port })
    return found
  }
  assert.deepEqual(await bootstrapNodes(), [dead])
  assert.equal(await made.isOnline(), false)
  assert.deepEqual(await bootstrapNodes(), [dead, ...testnet.bootstrap])
  assert.equal(await made.isOnline(), true)
  assert.deepEqual(await bootstrapNodes(), [dead])
})

test('new bootstrap nodes of a swarm stay after it was offline', async () => {
  const made = swarm({ bootstrap: [{ host: '127.0.0.1', port: 1 }] })
  assert.equal(await made.isOnline(), false)
  made.dht.setBootstrap(testnet.bootstrap, [])
  assert.equal(await made.isOnline(), true)
})

test('without bootstrap nodes, a swarm uses the public DHT', async () => {
  const { dht } = swarm({ bootstrap: [] })
  dht.setBootstrap(null, [])
  assert.ok(dht.bootstrapNodes.length > 0)
  for (const { host, port } of dht.bootstrapNodes) assert.match(`${host}:${port}`, /^[\d.]+@[\w.]+:\d+$/)
  dht.setBootstrap([], [])
})
