'use strict'
// Hyperswarm as we need it: tells how each connection runs, why a dial failed, and lets a firewall change its mind.

const DHT = require('hyperdht')
const Hyperswarm = require('hyperswarm')

/** Each side sends at least this often and takes this much silence for death: both ends must agree, so both are fixed. */
const KEEP_ALIVE_MS = 1000
const SILENCE_MS = 3000
const MAX_PEERS = 1024
const MAX_PARALLEL = 16
/** Hyperswarm's own retries; what comes after them is in recovery.js. */
const BACKOFFS_MS = [250, 1000, 5000, 60000]
const JITTER_MS = 200

const hexOf = (key) => key.toString('hex')

/** A DHT that knows which of its streams lead to relays and which dials are still open. */
class Dht extends DHT {
  constructor(options) {
    super(options)
    this.relayStreams = new Set()
    this.dials = new Map() // stream -> when it began
    this.onDialFailed = () => {}
  }

  connect(key, options) {
    const stream = super.connect(key, options)
    // hyperdht itself dials relays, and only those, without options.
    if (options === undefined) {
      this.relayStreams.add(stream)
      stream.once('close', () => this.relayStreams.delete(stream))
      return stream
    }
    let failure = null
    this.dials.set(stream, Date.now())
    stream.once('open', () => this.dials.delete(stream))
    stream.on('error', (error) => {
      failure = error
    })
    stream.once('close', () => {
      if (this.dials.delete(stream)) this.onDialFailed(key, failure)
    })
    return stream
  }

  /** direct: by an address that the peer or we can be reached at. punched: by a socket made for it. relayed: by another's. */
  pathOf(stream) {
    const raw = stream.rawStream
    for (const relay of this.relayStreams) if (sameRoute(relay.rawStream, raw)) return 'relayed'
    return raw.socket === this.io.serverSocket || raw.socket === this.io.clientSocket ? 'direct' : 'punched'
  }
}

function sameRoute(a, b) {
  return a !== null && a.socket === b.socket && a.remotePort === b.remotePort && a.remoteHost === b.remoteHost
}

/** Whom we let in. Replaced as a whole. */
class Firewall {
  constructor(denied, allowed) {
    this.denied = denied
    this.allowed = allowed
  }

  /** u8 1: there is a list of the allowed | u32le number of the denied | their keys | the keys of the allowed */
  static parse(payload) {
    const keys = []
    for (let at = 5; at < payload.length; at += 32) keys.push(payload.toString('hex', at, at + 32))
    const count = payload.readUInt32LE(1)
    return new Firewall(new Set(keys.slice(0, count)), payload[0] === 1 ? new Set(keys.slice(count)) : null)
  }

  refuses(hex) {
    return this.denied.has(hex) || (this.allowed !== null && !this.allowed.has(hex))
  }
}

/** A swarm whose firewall leaves no trace: the library bans a refused key for good and keeps a record of each stranger. */
class Swarm extends Hyperswarm {
  constructor(options) {
    super(options)
    this.gate = new Firewall(new Set(), null)
    this.onRefused = () => {}
  }

  _handleFirewall(key, payload) {
    if (key.equals(this.keyPair.publicKey)) return true
    const incoming = payload !== null
    if (this.gate.refuses(hexOf(key))) {
      if (incoming) this.onRefused(key)
      return true
    }
    return incoming && this.connections.size >= this.maxPeers
  }

  /** Dials a peer now, whatever its retry budget says. */
  redial(key, topic) {
    const known = this.peers.get(hexOf(key))
    if (known) known._reset()
    this._handlePeer({ publicKey: key, relayAddresses: known ? known.relayAddresses : null }, topic)
  }

  async setGate(gate) {
    this.gate = gate
    for (const stream of this.connections) if (gate.refuses(hexOf(stream.remotePublicKey))) stream.destroy(new Error('not allowed'))
    for (const info of this.peers.values()) {
      if (info.topics.length > 0 && !gate.refuses(hexOf(info.publicKey))) this.redial(info.publicKey, info.topics[0])
    }
  }
}

function open(keyPair, options) {
  const dht = new Dht({
    keyPair,
    bootstrap: options.bootstrap ?? undefined,
    host: options.host ?? undefined,
    // hyperdht takes 0 for 49737.
    port: options.port || undefined,
    firewalled: options.open ? false : undefined,
    ephemeral: options.persistent ? false : undefined,
    connectionKeepAlive: KEEP_ALIVE_MS,
  })
  const relays = options.relays.map((hex) => Buffer.from(hex, 'hex'))
  return new Swarm({
    dht,
    keyPair,
    maxPeers: MAX_PEERS,
    maxParallel: MAX_PARALLEL,
    backoffs: BACKOFFS_MS,
    jitter: JITTER_MS,
    relayThrough: relays.length > 0 ? (force) => (force || dht.randomized ? relays : null) : null,
  })
}

module.exports = { open, Dht, Firewall, Swarm, hexOf, KEEP_ALIVE_MS, SILENCE_MS }
