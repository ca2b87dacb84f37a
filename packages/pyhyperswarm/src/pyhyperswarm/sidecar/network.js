'use strict'
// Extends Hyperswarm: reports each connection's path and why a dial failed, and has a firewall that can change.

const DHT = require('hyperdht')
const { BOOTSTRAP_NODES, COMMANDS } = require('hyperdht/lib/constants')
const { HOLEPUNCH_DOUBLE_RANDOMIZED_NATS } = require('hyperdht/lib/errors')
const { id: idOf } = require('dht-rpc/lib/peer')
const Hyperswarm = require('hyperswarm')
const { Names } = require('./names')

/** Each side sends at least this often, and treats this much silence as a lost peer. Fixed, because both ends must agree. */
const KEEP_ALIVE_MS = 1000
const SILENCE_MS = 3000
const MAX_PEERS = 1024
const MAX_PARALLEL = 16
/** Hyperswarm's own retries, which end after three. ../peer_recovery.py decides about later ones. */
const BACKOFFS_MS = [250, 1000, 5000, 60000]
const JITTER_MS = 200
/** An older dial waits for a peer that does not answer, or whose packets were lost. */
const STALE_DIAL_MS = 1000

const DUPLICATE = 'Duplicate connection'
const hexOf = (key) => key.toString('hex')

/** A DHT that knows its relay streams, its pending dials, and the former addresses of its nodes. */
class Dht extends DHT {
  names = new Names()
  /** Former addresses of the mesh's DHT nodes. Used only when needed, because dead ones delay every query by seconds. */
  olderNodes = []
  needsOlder = false

  constructor(options) {
    super(options)
    this.relayStreams = new Set()
    this.dials = new Map() // stream -> its start and failure
  }

  /** Sets the bootstrap nodes; null for those of the public DHT. */
  setBootstrap(nodes, older) {
    this.bootstrapNodes = nodes ?? BOOTSTRAP_NODES.map((text) => ({ host: text.split(':')[0], port: Number(text.split(':')[1]) }))
    this.olderNodes = older
  }

  /** Like the library's own method, but does not wait for a slow resolver. */
  async *_resolveBootstrapNodes() {
    const nodes = this.needsOlder ? [...this.bootstrapNodes, ...this.olderNodes] : this.bootstrapNodes
    const found = await Promise.all(nodes.map(({ host }) => this.names.addressesOf(host)))
    for (const [index, { port }] of nodes.entries()) {
      for (const host of found[index]) yield { id: idOf(host, port), host, port }
    }
  }

  connect(key, options) {
    const stream = super.connect(key, options)
    const dial = { since: Date.now(), failure: null }
    // hyperdht dials relays, and only relays, without options.
    if (options === undefined) this.relayStreams.add(stream)
    else this.dials.set(stream, dial)
    stream.once('open', () => this.dials.delete(stream))
    stream.on('error', (error) => Object.assign(dial, { failure: error }))
    stream.once('close', () => {
      this.relayStreams.delete(stream)
      if (this.dials.delete(stream)) this.emit('dial-failed', key, this.reasonOf(dial.failure))
    })
    return stream
  }

  /** The library loses the fact that both NATs are symmetric. If only ours was, it would have started random punching. */
  reasonOf(error) {
    const punches = this._randomPunches > 0 || Date.now() - this._lastRandomPunch < this._randomPunchInterval
    const isDouble = error?.code === 'HOLEPUNCH_ABORTED' && this.randomized && !punches
    return isDouble ? HOLEPUNCH_DOUBLE_RANDOMIZED_NATS() : error
  }

  isStale(stream) {
    return Date.now() - this.dials.get(stream)?.since > STALE_DIAL_MS
  }

  /** direct: through a reachable address. punched: through a socket opened for this connection. relayed: through a relay. */
  pathOf({ rawStream: raw }) {
    for (const { rawStream: relay } of this.relayStreams) {
      if (relay?.socket === raw.socket && relay.remotePort === raw.remotePort && relay.remoteHost === raw.remoteHost) return 'relayed'
    }
    return raw.socket === this.io.serverSocket || raw.socket === this.io.clientSocket ? 'direct' : 'punched'
  }
}

/** A swarm whose firewall keeps no state. The library's own bans a refused key for ever and remembers every stranger. */
class Swarm extends Hyperswarm {
  /** Keys in hex. */
  denied = new Set()

  refuses(key) {
    return this.denied.has(hexOf(key))
  }

  _handleFirewall(key, payload) {
    if (key.equals(this.keyPair.publicKey)) return true
    const isIncoming = payload !== null
    const isRefused = this.refuses(key)
    if (isRefused && isIncoming) this.emit('refused', key)
    return isRefused || (isIncoming && this.connections.size >= this.maxPeers)
  }

  _handleServerConnection(stream) {
    const dialled = this._allConnections.get(stream.remotePublicKey)
    // When both sides dial, the library may prefer our dial. If that hangs, it would block the peer's connection for seconds.
    if (dialled && this.dht.isStale(dialled)) {
      dialled.destroy(new Error(DUPLICATE))
      this._handleServerConnectionSwap(dialled, stream)
    } else super._handleServerConnection(stream)
  }

  /** Dials a peer now, regardless of its retry budget. */
  dial(key, topic) {
    const known = this.peers.get(hexOf(key))
    known?._reset()
    this._handlePeer({ publicKey: key, relayAddresses: known?.relayAddresses ?? null }, topic)
  }

  deny(keys) {
    this.denied = new Set(keys)
    for (const stream of this.connections) if (this.refuses(stream.remotePublicKey)) stream.destroy(new Error('not allowed'))
    for (const { publicKey, topics } of this.peers.values()) {
      if (topics.length > 0 && !this.refuses(publicKey)) this.dial(publicKey, topics[0])
    }
  }

  /** Call it when the network is back or has changed. */
  revive() {
    this.server.refresh()
    for (const stream of this.dht.dials.keys()) if (this.dht.isStale(stream)) stream.destroy()
  }

  isRemembered() {
    return isRemembered(this.dht, this.server)
  }

  /** Returns whether any nearby DHT node or bootstrap node answers. The latter may have moved, and nothing else contacts them while we
   * believe that we are offline. */
  async isOnline() {
    const nodes = this.dht.toArray({ limit: 3 })
    if (nodes.length === 0) this.dht.refresh()
    else this.lastNodes = nodes
    const candidates = [...(this.lastNodes ?? [])]
    for await (const node of this.dht._resolveBootstrapNodes()) candidates.push(node)
    const pings = candidates.map(({ host, port }) => this.dht.ping({ host, port }, { retry: false }))
    const isOnline = await Promise.any(pings).then(Boolean, () => false)
    this.dht.needsOlder = !isOnline
    return isOnline
  }
}

/** Returns whether the DHT nodes that announce a server still do. A restarted node answers but has forgotten everything. */
async function isRemembered(dht, { _announcer: announcer }) {
  const { relays = [], target } = announcer ?? {}
  const question = { token: null, command: COMMANDS.FIND_PEER, target, value: null }
  const answers = await Promise.allSettled(relays.map(({ relayAddress }) => dht.request(question, relayAddress)))
  return answers.length > 0 && answers.every(({ value }) => Boolean(value?.value))
}

function open(keyPair, { bootstrap, older = [], nodes, host, port, open, relays }) {
  const dht = new Dht({
    keyPair,
    bootstrap: bootstrap ?? undefined,
    nodes,
    host: host ?? undefined,
    // For hyperdht, 0 means 49737 to 49741, which DHT nodes use too. An empty range lets the system choose.
    port: port || [0, 0],
    firewalled: open ? false : undefined,
    connectionKeepAlive: KEEP_ALIVE_MS,
  })
  dht.olderNodes = older
  const keys = relays.map((hex) => Buffer.from(hex, 'hex'))
  const relayThrough = keys.length > 0 ? (force) => (force || dht.randomized ? keys : null) : null
  const options = { maxPeers: MAX_PEERS, maxParallel: MAX_PARALLEL, backoffs: BACKOFFS_MS, jitter: JITTER_MS }
  return new Swarm({ ...options, dht, keyPair, relayThrough })
}

module.exports = { open, isRemembered, Dht, Swarm, hexOf, DUPLICATE, KEEP_ALIVE_MS, SILENCE_MS }
