'use strict'
// The sidecar: runs one Hyperswarm for the socketpair whose number is the only argument. Exits with its parent.

const net = require('node:net')
const DHT = require('hyperdht')
const { Connection, DATA, PART } = require('./connections')
const { Copying } = require('./copying')
const { TYPE, BadFrame, Outbox, Parser } = require('./frames')
const { open, hexOf, DUPLICATE } = require('./network')

const EXIT = { OK: 0, BAD_FRAME: 65, FAILED: 70 }
/** How long streams may take to end properly, so that peers notice. */
const DRAIN_MS = 500
const GOODBYE_MS = 1500
const PARENT_CHECK_MS = 1000
/** Limits the refusals to report, because strangers cause them. */
const REFUSALS_PER_SECOND = 20

const socket = new net.Socket({ fd: Number(process.argv[2]), readable: true, writable: true })
const outbox = new Outbox(socket)
const connections = new Map()
const copying = new Copying(outbox)
let lastId = 0
let swarm = null
let isLeaving = false
let servesRequests = false
let rpc = null
let refusals = 0

async function leave(code) {
  if (isLeaving) return
  isLeaving = true
  setTimeout(() => process.exit(code), GOODBYE_MS).unref()
  try {
    const closed = [...(swarm?.connections ?? [])].map((stream) => new Promise((resolve) => stream.once('close', resolve).end()))
    await Promise.race([Promise.all(closed), new Promise((resolve) => setTimeout(resolve, DRAIN_MS))])
    await swarm?.destroy()
  } finally {
    process.exit(code)
  }
}

function failed(error) {
  process.stderr.write(`${error?.stack ?? error}\n`)
  leave(error instanceof BadFrame ? EXIT.BAD_FRAME : EXIT.FAILED)
}

for (const end of ['end', 'error', 'close']) socket.on(end, () => leave(EXIT.OK))
for (const failure of ['uncaughtException', 'unhandledRejection']) process.on(failure, failed)
// Signals reach the whole process group. The parent decides when to exit, because it may have answers to finish.
for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP']) process.on(signal, () => {})
// A process forked by the parent may keep the other end of the socketpair open after the parent's death.
const parent = process.ppid
setInterval(() => {
  refusals = 0
  if (process.ppid !== parent) leave(EXIT.OK)
}, PARENT_CHECK_MS).unref()

/** The callbacks of a connection. */
const owner = {
  outbox,
  firstBytes: 0,
  pathOf: (stream) => swarm.dht.pathOf(stream),
  adopt(connection, message) {
    if (!servesRequests) return false
    rpc ??= require('./rpc') // rarely needed
    rpc.adopt(connection, message, swarm.keyPair.publicKey, outbox)
    return true
  },
  opened(connection, allowance) {
    const { id, stream, info } = connection
    const { isInitiator: initiator, handshakeHash, remotePublicKey } = stream
    const topics = info.topics.map(hexOf)
    const facts = { ...connection.route(), key: hexOf(remotePublicKey), channel: hexOf(handshakeHash), initiator, topics, allowance }
    outbox.json(TYPE.OPEN, id, facts)
    copying.opened(connection)
  },
  receive: (connection, message) => copying.receive(connection, message),
  closed(connection) {
    const { id, isOpen, failure, stream } = connection
    connections.delete(id)
    if (isOpen) {
      copying.closed(connection)
      outbox.send(TYPE.CLOSE, id, Buffer.from(failure?.message ?? ''))
    } else if (stream.isInitiator) dialFailed(stream.remotePublicKey, failure)
  },
}

function dialFailed(key, error) {
  if (isLeaving || error === null || error.message === DUPLICATE) return
  const topics = (swarm.peers.get(hexOf(key))?.topics ?? []).map(hexOf)
  outbox.json(TYPE.EVENT, 0, { event: 'dial-failed', key: hexOf(key), topics, code: error.code ?? 'FAILED', text: error.message })
}

function start(seed, options) {
  const keyPair = DHT.keyPair(seed)
  seed.fill(0)
  owner.firstBytes = options.firstBytes
  servesRequests = options.servesRequests
  swarm = open(keyPair, options)
  swarm.on('connection', (stream, info) => {
    lastId = (lastId + 1) >>> 0
    connections.set(lastId, new Connection(lastId, stream, info, owner))
  })
  swarm.on('refused', (key) => ++refusals <= REFUSALS_PER_SECOND && outbox.json(TYPE.EVENT, 0, { event: 'refused', key: hexOf(key) }))
  swarm.dht.on('dial-failed', dialFailed)
  swarm.dht.on('network-change', () => outbox.json(TYPE.EVENT, 0, { event: 'network-changed' }))
  if (servesRequests) swarm.listen() // to be found by key, without a topic
  swarm.dht.bind().then(() => outbox.send(TYPE.READY, 0, keyPair.publicKey), failed)
}

function bytesOf(hex) {
  if (!/^[0-9a-f]{64}$/.test(hex)) throw new Error('a key or topic must have 64 hex digits')
  return Buffer.from(hex, 'hex')
}

/** The calls that Python may make. Each returns the answer or a promise of it. */
const CALLS = {
  join({ topic, server, client }) {
    const joined = swarm.status(bytesOf(topic))
    if (joined === null || joined.destroyed) swarm.join(bytesOf(topic), { server, client })
    else joined._sessions[0].refresh({ server, client }).catch(() => {})
  },
  leave: ({ topic }) => swarm.leave(bytesOf(topic)),
  dial: ({ key, topic }) => swarm.dial(bytesOf(key), bytesOf(topic)),
  joinPeer: ({ key }) => swarm.joinPeer(bytesOf(key)),
  leavePeer: ({ key }) => swarm.leavePeer(bytesOf(key)),
  refresh: ({ topic }) => swarm.status(bytesOf(topic))?.refresh(),
  flush: () => Promise.all([...swarm.topics()].map((discovery) => discovery.flushed())),
  firewall: ({ denied }) => swarm.deny(denied),
  bootstrap: ({ bootstrap, older }) => swarm.dht.setBootstrap(bootstrap, older),
  isOnline: () => swarm.isOnline(),
  nodes: () => swarm.dht.toArray({ limit: 32 }),
  isRemembered: () => swarm.isRemembered(),
  announce: () => swarm.server.refresh(),
  revive: () => swarm.revive(),
  ...copying.calls,
  stats() {
    const { host, port, firewalled, randomized, bootstrapped } = swarm.dht
    const dht = { host, port, firewalled, randomized, bootstrapped, nodes: swarm.dht.toArray().length }
    return { rss: process.memoryUsage.rss(), connections: connections.size, dht }
  },
}

async function call(id, { method, ...parameters }) {
  if (!Object.hasOwn(CALLS, method)) throw new BadFrame(`no such call: ${method}`)
  const answering = Promise.resolve(parameters).then(CALLS[method])
  const answer = await answering.then((value) => ({ value: value ?? null })).catch((error) => ({ error: error.message }))
  outbox.json(TYPE.ANSWER, id, answer)
}

function parse(chunk, begin, end) {
  try {
    return JSON.parse(chunk.toString('utf8', begin, end))
  } catch (error) {
    throw new BadFrame(error.message)
  }
}

function onFrame(type, id, chunk, begin, end) {
  if (type === TYPE.HELLO && swarm === null && end - begin > 32) start(chunk.subarray(begin, begin + 32), parse(chunk, begin + 32, end))
  else if (swarm === null) throw new BadFrame(`type ${type} before HELLO`)
  else if (type === TYPE.DATA || type === TYPE.PART) {
    // Overwrite the last byte of the header, which has been read, with the kind, so that the message is not copied.
    chunk[begin - 1] = type === TYPE.DATA ? DATA : PART
    connections.get(id)?.send(chunk.subarray(begin - 1, end))
  } else if (type === TYPE.CREDIT && end - begin === 4) connections.get(id)?.grant(chunk.readUInt32LE(begin))
  else if (type === TYPE.CLOSE && end - begin === 1) connections.get(id)?.close(chunk[begin] === 1)
  else if (type === TYPE.RESPONSE && rpc !== null && end > begin) rpc.answer(id, Buffer.from(chunk.subarray(begin, end)))
  else if (type === TYPE.CALL) call(id, parse(chunk, begin, end))
  else throw new BadFrame(`type ${type} with ${end - begin} bytes`)
}

const parser = new Parser(onFrame)
socket.on('data', (chunk) => {
  if (!isLeaving) parser.feed(chunk)
})
