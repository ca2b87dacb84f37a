'use strict'
// Hyperswarm as we need it: tells how each connection runs, why a dial failed, and lets a firewall change its mind.

const DHT = require('hyperdht')
const { BOOTSTRAP_NODES, COMMANDS } = require('hyperdht/lib/constants')
const { HOLEPUNCH_DOUBLE_RANDOMIZED_NATS } = require('hyperdht/lib/errors')
const { id: idOf } = require('dht-rpc/lib/peer')
const Hyperswarm = require('hyperswarm')
const { Names } = require('./names')

/** Each side sends at least this often and takes this much silence for death: both ends must agree, so both are fixed. */
const KEEP_ALIVE_MS = 1000
const SILENCE_MS = 3000
const MAX_PEERS = 1024
const MAX_PARALLEL = 16
/** Hyperswarm's own retries, which end after three; what comes after them is decided in ../recovery.py. */
const BACKOFFS_MS = [250, 1000, 5000, 60000]
const JITTER_MS = 200
/** A dial that is older waits for somebody who does not answer, or answers to packets that are gone. */
const STALE_DIAL_MS = 1000

const DUPLICATE = 'Duplicate connection'
const hexOf = (key) => key.toString('hex')

/** A DHT that knows which of its streams lead to relays, which dials have not opened yet, and where it was to be found before. */
class Dht extends DHT {
  names = new Names()
  /** Former addresses of the mesh's DHT nodes. The dead among them would make every query wait for seconds. */
  olderNodes = []
  needsOlder = false

  constructor(options) {
    super(options)
    this.relayStreams = new Set()
    this.dials = new Map() // stream -> since when, and what it failed of
  }

  /** Nodes to begin with, from now on; null: those of the public DHT. */
  setBootstrap(nodes, older) {
    this.bootstrapNodes = nodes ?? BOOTSTRAP_NODES.map((text) => ({ host: text.split(':')[0], port: Number(text.split(':')[1]) }))
    this.olderNodes = older
  }

  /** The library does the same for every query, but waits for the resolver however long that takes. */
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
    // hyperdht itself dials relays, and only those, without options.
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

  /** The library forgets on the way that it found both NATs symmetric. With ours alone so, it would have begun to punch at random. */
  reasonOf(error) {
    const punches = this._randomPunches > 0 || Date.now() - this._lastRandomPunch < this._randomPunchInterval
    const isDouble = error?.code === 'HOLEPUNCH_ABORTED' && this.randomized && !punches
    return isDouble ? HOLEPUNCH_DOUBLE_RANDOMIZED_NATS() : error
  }

  isStale(stream) {
    return Date.now() - this.dials.get(stream)?.since > STALE_DIAL_MS
  }

  /** direct: by an address one of us can be reached at. punched: by a socket made for it. relayed: by somebody else. */
  pathOf({ rawStream: raw }) {
    for (const { rawStream: relay } of this.relayStreams) {
      if (relay?.socket === raw.socket && relay.remotePort === raw.remotePort && relay.remoteHost === raw.remoteHost) return 'relayed'
    }
    return raw.socket === this.io.serverSocket || raw.socket === this.io.clientSocket ? 'direct' : 'punched'
  }
}

/** A swarm whose firewall leaves no trace: the library bans a refused key for good and keeps a record of each stranger. */
class Swarm extends Hyperswarm {
  /** Of keys in hex. allowed === null: everybody who is not denied. */
  gate = { denied: new Set(), allowed: null }

  refuses(key) {
    const { denied, allowed } = this.gate
    return denied.has(hexOf(key)) || (allowed !== null && !allowed.has(hexOf(key)))
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
    // When both dial, the library may keep our dial. One that hangs would shut out, for seconds, the peer who is already here.
    if (dialled && this.dht.isStale(dialled)) {
      dialled.destroy(new Error(DUPLICATE))
      this._handleServerConnectionSwap(dialled, stream)
    } else super._handleServerConnection(stream)
  }

  /** Dials a peer now, whatever its retry budget says. */
  dial(key, topic) {
    const known = this.peers.get(hexOf(key))
    known?._reset()
    this._handlePeer({ publicKey: key, relayAddresses: known?.relayAddresses ?? null }, topic)
  }

  setGate(denied, allowed) {
    this.gate = { denied: new Set(denied), allowed: allowed && new Set(allowed) }
    for (const stream of this.connections) if (this.refuses(stream.remotePublicKey)) stream.destroy(new Error('not allowed'))
    for (const { publicKey, topics } of this.peers.values()) {
      if (topics.length > 0 && !this.refuses(publicKey)) this.dial(publicKey, topics[0])
    }
  }

  /** The network is back, or another. */
  revive() {
    this.server.refresh()
    for (const stream of this.dht.dials.keys()) if (this.dht.isStale(stream)) stream.destroy()
  }

  isRemembered() {
    return isRemembered(this.dht, this.server)
  }

  /** Whether any of the DHT's nodes near us answers now, or of those to begin with, which may have moved: as long as we believe that there
   * is no network, nothing else asks them. */
  async isOnline() {
    const nodes = this.dht.toArray({ limit: 3 })
    if (nodes.length === 0) this.dht.refresh()
    else this.lastNodes = nodes
    const asked = [...(this.lastNodes ?? [])]
    for await (const node of this.dht._resolveBootstrapNodes()) asked.push(node)
    const pings = asked.map(({ host, port }) => this.dht.ping({ host, port }, { retry: false }))
    const isOnline = await Promise.any(pings).then(Boolean, () => false)
    this.dht.needsOlder = !isOnline
    return isOnline
  }
}

/** Whether those DHT nodes that announce a server still do: one that was started anew answers, and has forgotten everybody. */
async function isRemembered(dht, { _announcer: announcer }) {
  const { relays = [], target } = announcer ?? {}
  const question = { token: null, command: COMMANDS.FIND_PEER, target, value: null }
  const answers = await Promise.allSettled(relays.map(({ relayAddress }) => dht.request(question, relayAddress)))
  return answers.length > 0 && answers.every(({ value }) => Boolean(value?.value))
}

function open(keyPair, { bootstrap, older = [], nodes, host, port, open, persistent, relays }) {
  const dht = new Dht({
    keyPair,
    bootstrap: bootstrap ?? undefined,
    nodes,
    host: host ?? undefined,
    // hyperdht takes 0 for 49737 to 49741, and so do DHT nodes: an empty range leaves it to the system.
    port: port || [0, 0],
    firewalled: open ? false : undefined,
    ephemeral: persistent ? false : undefined,
    connectionKeepAlive: KEEP_ALIVE_MS,
  })
  dht.olderNodes = older
  const keys = relays.map((hex) => Buffer.from(hex, 'hex'))
  const relayThrough = keys.length > 0 ? (force) => (force || dht.randomized ? keys : null) : null
  const options = { maxPeers: MAX_PEERS, maxParallel: MAX_PARALLEL, backoffs: BACKOFFS_MS, jitter: JITTER_MS }
  return new Swarm({ ...options, dht, keyPair, relayThrough })
}

module.exports = { open, isRemembered, Dht, Swarm, hexOf, DUPLICATE, KEEP_ALIVE_MS, SILENCE_MS }
