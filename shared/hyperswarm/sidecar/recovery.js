'use strict'
// Finding peers again. Hyperswarm gives up on a lost peer after three dials and looks a topic up every ten minutes; both are too few.

const { hexOf } = require('./network')

const TICK_MS = 250
const MINUTE_MS = 60_000
const HOUR_MS = 60 * MINUTE_MS
/** How often a lost peer is dialled: at first as listed, then every so often until it has been away so long. */
const FIRST_DIALS_MS = [250, 500, 1000, 2000]
const DIALS = [
  { awayMs: 2 * MINUTE_MS, everyMs: 3000 },
  { awayMs: 10 * MINUTE_MS, everyMs: 10_000 },
  { awayMs: 6 * HOUR_MS, everyMs: MINUTE_MS },
]
const MAX_LOST = 256
/** A lookup is about twenty packets, so these are few. */
const LOOKUPS_MS = { alone: [1000, 2000, 4000, 8000, 10_000], aloneForLong: 30_000, lost: 5000, accompanied: 120_000 }
const ALONE_FOR_LONG = 60
/** While somebody is missing we ask the DHT whether we are online at all; offline nobody is dialled. */
const PROBE_MS = { online: 3000, offline: 1000 }
/** A dial from before the network came back waits for answers to packets that are gone. */
const STALE_DIAL_MS = 500

class Recovery {
  constructor(swarm, onNetworkChange) {
    this.swarm = swarm
    this.onNetworkChange = onNetworkChange
    this.topics = new Map() // hex -> { topic, lookups, dueAt }
    this.lost = new Map() // hex of key -> { key, topic, since, dials, dueAt }
    this.isOnline = true
    this.probeAt = 0
    this.isProbing = false
    this.nodes = []
    this.timer = setInterval(() => this.tick(Date.now()), TICK_MS)
    swarm.dht.on('network-change', () => this.comeBack())
  }

  joined(topic) {
    this.topics.set(hexOf(topic), { topic, lookups: 0, dueAt: Date.now() + LOOKUPS_MS.alone[0] })
  }

  left(topic) {
    this.topics.delete(hexOf(topic))
    for (const [hex, peer] of this.lost) if (peer.topic.equals(topic)) this.lost.delete(hex)
  }

  /** An open connection ended, and not by our wish. Only who announces itself can be dialled. */
  lose(info) {
    const topic = info.topics.find((each) => this.topics.has(hexOf(each)))
    if (topic === undefined) return
    const now = Date.now()
    if (this.lost.size >= MAX_LOST) this.lost.delete(this.lost.keys().next().value)
    this.lost.set(hexOf(info.publicKey), { key: info.publicKey, topic, since: now, dials: 0, dueAt: now + FIRST_DIALS_MS[0] })
    const state = this.topics.get(hexOf(topic))
    state.lookups = 0
    state.dueAt = Math.min(state.dueAt, now + LOOKUPS_MS.alone[0])
    this.probeAt = now
  }

  find(hex) {
    this.lost.delete(hex)
  }

  /** The network is back, or another: whatever waits, waits for nothing. */
  comeBack() {
    const now = Date.now()
    this.isOnline = true
    this.swarm.server.refresh()
    this.swarm.server.notifyOnline()
    for (const [stream, since] of this.swarm.dht.dials) if (now - since > STALE_DIAL_MS) stream.destroy()
    for (const peer of this.lost.values()) peer.dueAt = now
    for (const state of this.topics.values()) {
      state.dueAt = now
      state.lookups = 0
    }
    this.onNetworkChange()
  }

  tick(now) {
    this._probe(now)
    if (!this.isOnline) return
    for (const [hex, peer] of this.lost) {
      if (peer.dueAt > now) continue
      const wait = waitAfter(peer.dials++, now - peer.since)
      if (wait === null) {
        this.lost.delete(hex)
        continue
      }
      peer.dueAt = now + wait
      this.swarm.redial(peer.key, peer.topic)
    }
    for (const state of this.topics.values()) if (state.dueAt <= now) this._look(state, now)
  }

  look(topic) {
    const discovery = this.swarm.status(topic)
    return discovery === null ? Promise.resolve(false) : discovery.refresh()
  }

  destroy() {
    clearInterval(this.timer)
  }

  _look(state, now) {
    this.look(state.topic).catch(() => {})
    const wait = this._isAlone(state.topic) ? aloneWait(state.lookups) : this.lost.size > 0 ? LOOKUPS_MS.lost : LOOKUPS_MS.accompanied
    state.lookups++
    state.dueAt = now + wait
  }

  _isAlone(topic) {
    for (const stream of this.swarm.connections) {
      const info = this.swarm.peers.get(hexOf(stream.remotePublicKey))
      if (info?.topics.some((each) => each.equals(topic))) return false
    }
    return true
  }

  _probe(now) {
    if (this.isProbing || now < this.probeAt || !this._misses()) return
    this.isProbing = true
    this._isReachable().then((reachable) => {
      this.isProbing = false
      this.probeAt = Date.now() + (reachable ? PROBE_MS.online : PROBE_MS.offline)
      if (reachable && !this.isOnline) this.comeBack()
      this.isOnline = reachable
    })
  }

  _misses() {
    if (this.lost.size > 0 || !this.isOnline) return true
    for (const { topic } of this.topics.values()) if (this._isAlone(topic)) return true
    return false
  }

  async _isReachable() {
    const { dht } = this.swarm
    const nodes = dht.toArray({ limit: 3 })
    if (nodes.length > 0) this.nodes = nodes
    if (this.nodes.length === 0) {
      dht.refresh()
      return false
    }
    try {
      await Promise.any(this.nodes.map((node) => dht.ping(node, { retry: false })))
      return true
    } catch {
      // All of these few may be gone while others live: look around.
      if (nodes.length === 0) dht.refresh()
      return false
    }
  }
}

function waitAfter(dials, awayMs) {
  if (dials < FIRST_DIALS_MS.length) return FIRST_DIALS_MS[dials]
  const stage = DIALS.find((each) => awayMs < each.awayMs)
  return stage === undefined ? null : stage.everyMs
}

function aloneWait(lookups) {
  if (lookups >= ALONE_FOR_LONG) return LOOKUPS_MS.aloneForLong
  return LOOKUPS_MS.alone[Math.min(lookups, LOOKUPS_MS.alone.length - 1)]
}

module.exports = { Recovery, waitAfter, aloneWait }
