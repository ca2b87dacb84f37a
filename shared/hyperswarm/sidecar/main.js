'use strict'
// The sidecar: one Hyperswarm behind one socketpair, whose number is the only argument. Lives as long as its parent.

const net = require('node:net')
const DHT = require('hyperdht')
const { Connection, DATA, PART } = require('./connections')
const { BOTH_WAYS, FROM_PYTHON, TO_PYTHON, BadFrame, Outbox, Parser } = require('./frames')
const network = require('./network')
const { Recovery } = require('./recovery')

const EXIT = { OK: 0, BAD_FRAME: 65, FAILED: 70 }
/** Streams are closed one by one so that peers hear of it; more time than this they do not get. */
const GOODBYE_MS = 1500
const DRAIN_MS = 500
/** A dial that fails the same way is told once in this time. */
const TELL_EVERY_MS = 5000
const MAX_TOLD = 1024
const PARENT_CHECK_MS = 1000

const socket = new net.Socket({ fd: Number(process.argv[2]), readable: true, writable: true })
const outbox = new Outbox(socket)
const connections = new Map()
const sessions = new Map() // topic in hex -> discovery session
const told = new Map()
let lastId = 0
let swarm = null
let recovery = null
let isLeaving = false

// --- life ------------------------------------------------------------------------------------------------------------

function leave(code) {
  if (isLeaving) return
  isLeaving = true
  setTimeout(() => process.exit(code), GOODBYE_MS).unref()
  goodbye().finally(() => process.exit(code))
}

async function goodbye() {
  if (swarm === null) return
  recovery.destroy()
  const gone = [...swarm.connections].map((stream) => new Promise((resolve) => stream.once('close', resolve).end()))
  await Promise.race([Promise.all(gone), new Promise((resolve) => setTimeout(resolve, DRAIN_MS))])
  await swarm.destroy()
}

function failed(error) {
  process.stderr.write(`${error?.stack ?? error}\n`)
  leave(error instanceof BadFrame ? EXIT.BAD_FRAME : EXIT.FAILED)
}

socket.on('end', () => leave(EXIT.OK))
socket.on('error', () => leave(EXIT.OK))
socket.on('close', () => leave(EXIT.OK))
process.on('uncaughtException', failed)
process.on('unhandledRejection', failed)
// These reach the whole process group, or the whole service: when we leave is for the parent to decide, who may have answers to finish.
for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP']) process.on(signal, () => {})
// A process that the parent forked may keep the other end of the socketpair open beyond the parent's death.
const parent = process.ppid
setInterval(() => process.ppid !== parent && leave(EXIT.OK), PARENT_CHECK_MS).unref()

// --- events ----------------------------------------------------------------------------------------------------------

function tell(event) {
  const key = `${event.event} ${event.key ?? ''} ${event.code ?? ''}`
  const now = Date.now()
  if (now - (told.get(key) ?? 0) < TELL_EVERY_MS) return
  told.delete(key)
  if (told.size >= MAX_TOLD) told.delete(told.keys().next().value)
  told.set(key, now)
  outbox.json(TO_PYTHON.EVENT, 0, event)
}

function dialFailed(key, error) {
  if (isLeaving || error?.message === 'Duplicate connection') return
  const hex = network.hexOf(key)
  const topics = (swarm.peers.get(hex)?.topics ?? []).map(network.hexOf)
  const code = error?.code ?? 'CLOSED'
  tell({ event: 'dial-failed', key: hex, topics, code, text: error?.message ?? 'closed before it opened' })
}

// --- connections (what a Connection asks of its owner) ---------------------------------------------------------------

const owner = {
  outbox,
  firstBytes: 0,
  pathOf: (stream) => swarm.dht.pathOf(stream),
  adopt: () => false,
  opened(connection, allowance) {
    recovery.find(network.hexOf(connection.stream.remotePublicKey))
    const meta = Buffer.from(JSON.stringify({ ...connection.describe(), allowance }))
    outbox.send(TO_PYTHON.OPEN, connection.id, Buffer.concat([connection.stream.remotePublicKey, meta]))
  },
  closed(connection) {
    connections.delete(connection.id)
    const { failure, isClosedByUs, info } = connection
    if (!connection.isOpen) {
      if (!isLeaving && failure !== null) dialFailed(connection.stream.remotePublicKey, failure)
      return
    }
    outbox.send(BOTH_WAYS.CLOSE, connection.id, Buffer.from(failure === null ? '' : failure.message))
    if (!isClosedByUs && !isLeaving && !swarm.gate.refuses(network.hexOf(info.publicKey))) recovery.lose(info)
  },
}

function onConnection(stream, info) {
  lastId = (lastId + 1) >>> 0
  connections.set(lastId, new Connection(lastId, stream, info, owner))
}

// --- commands --------------------------------------------------------------------------------------------------------

function answer(id, promise) {
  promise.then(
    (value) => outbox.send(TO_PYTHON.ACK, id, Buffer.concat([Buffer.of(0), Buffer.from(value === undefined ? '' : JSON.stringify(value))])),
    (error) => outbox.send(TO_PYTHON.ACK, id, Buffer.concat([Buffer.of(1), Buffer.from(String(error?.message ?? error))])),
  )
}

function start(seed, options) {
  const keyPair = DHT.keyPair(seed)
  seed.fill(0)
  owner.firstBytes = options.firstBytes
  swarm = network.open(keyPair, options)
  recovery = new Recovery(swarm, () => tell({ event: 'network-changed' }))
  swarm.dht.onDialFailed = dialFailed
  swarm.onRefused = (key) => tell({ event: 'refused', key: network.hexOf(key) })
  swarm.on('connection', onConnection)
  swarm.dht.bind().then(() => outbox.send(TO_PYTHON.READY, 0, keyPair.publicKey), failed)
}

async function join(flags, topic) {
  const options = { server: (flags & 1) !== 0, client: (flags & 2) !== 0 }
  const hex = network.hexOf(topic)
  const session = sessions.get(hex)
  if (session === undefined) sessions.set(hex, swarm.join(topic, options))
  else session.refresh(options).catch(() => {})
  if (options.client) recovery.joined(topic)
  else recovery.left(topic)
}

async function leaveTopic(topic) {
  const session = sessions.get(network.hexOf(topic))
  sessions.delete(network.hexOf(topic))
  recovery.left(topic)
  if (session !== undefined) await session.destroy()
}

async function refresh(topics) {
  await Promise.all(topics.map((topic) => recovery.look(topic)))
}

async function stats() {
  const { dht } = swarm
  return {
    rss_bytes: process.memoryUsage.rss(),
    connections: [...connections.values()].filter((connection) => connection.isOpen).length,
    peers: swarm.peers.size,
    lost: recovery.lost.size,
    online: recovery.isOnline,
    dht: {
      host: dht.host,
      port: dht.port,
      firewalled: dht.firewalled,
      randomized: dht.randomized,
      nodes: dht.toArray().length,
      bootstrapped: dht.bootstrapped,
    },
    punches: { consistent: dht.stats.punches.consistent, random: dht.stats.punches.random, open: dht.stats.punches.open },
    relaying: dht.stats.relaying,
  }
}

const KEY = [32, 32]
/** type -> the least and the most bytes of its payload, and what to do with it */
const COMMANDS = new Map([
  [FROM_PYTHON.JOIN, [[33, 33], (id, payload) => answer(id, join(payload[0], payload.subarray(1)))]],
  [FROM_PYTHON.LEAVE, [KEY, (id, topic) => answer(id, leaveTopic(topic))]],
  [FROM_PYTHON.JOIN_PEER, [KEY, (_id, key) => swarm.joinPeer(key)]],
  [FROM_PYTHON.LEAVE_PEER, [KEY, (_id, key) => swarm.leavePeer(key)]],
  [FROM_PYTHON.FIREWALL, [[5, Infinity], (id, payload) => answer(id, swarm.setGate(network.Firewall.parse(payload)))]],
  [FROM_PYTHON.STATS, [[0, 0], (id) => answer(id, stats())]],
  [FROM_PYTHON.REFRESH, [[0, 32], (id, topic) => answer(id, refresh(topic.length > 0 ? [topic] : [...swarm.topics()].map((each) => each.topic)))]],
  [FROM_PYTHON.FLUSH, [[0, 0], (id) => answer(id, Promise.all([...swarm.topics()].map((each) => each.flushed())).then(() => {}))]],
  [BOTH_WAYS.CREDIT, [[4, 4], (id, payload) => connections.get(id)?.grant(payload.readUInt32LE(0))]],
  [BOTH_WAYS.CLOSE, [[1, 1], (id, payload) => connections.get(id)?.close(payload[0] === 1)]],
])

function onFrame(type, id, chunk, begin, end) {
  if (type === BOTH_WAYS.DATA || type === BOTH_WAYS.PART) {
    // The frame's last byte of header has been read: the kind takes its place, and the message leaves without being copied.
    chunk[begin - 1] = type === BOTH_WAYS.DATA ? DATA : PART
    connections.get(id)?.send(chunk.subarray(begin - 1, end))
    return
  }
  // What outlives this call must not keep the chunk alive, nor be overwritten.
  const payload = Buffer.from(chunk.subarray(begin, end))
  if (type === FROM_PYTHON.HELLO && swarm === null && payload.length > 32) {
    start(payload.subarray(0, 32), JSON.parse(payload.toString('utf8', 32)))
    chunk.fill(0, begin, begin + 32)
    return
  }
  const [[least, most], run] = COMMANDS.get(type) ?? [[Infinity, 0]]
  if (swarm === null || payload.length < least || payload.length > most) throw new BadFrame(`type ${type} with ${payload.length} bytes`)
  run(id, payload)
}

const parser = new Parser(onFrame)
socket.on('data', (chunk) => {
  if (isLeaving) return
  try {
    parser.feed(chunk)
  } catch (error) {
    failed(error)
  }
})
