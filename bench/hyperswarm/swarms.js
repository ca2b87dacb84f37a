'use strict'
// Hyperswarm itself, as the rival and as the crowd; `bench.swarm` says which by the first argument, and options as JSON in the second.
//   bare                       loads the library, and prints its own memory
//   echo                       answers every message
//   ask                        asks an echo: 64 KiB messages as fast as they go, each round when a line is read
//   greedy                     says hello as our sidecar would, grants all that can be granted, and answers nothing
//   crowd                      many swarms in this process that join when a line is read, and say hello as our sidecar would

const DHT = require('hyperdht')
const Hyperswarm = require('hyperswarm')
const readline = require('node:readline')

const [, , role, json = '{}'] = process.argv
const { bootstrap, topic, size, total, count } = JSON.parse(json)

const ECHO = 0x45
const COUNT = 0x53
const REPORT = 0x51
/** The sidecar's greeting: the dialing side sends first, with the number of bytes it accepts before it grants more. */
const PREFACE = Buffer.from([0x48, 0x01, 0x00, 0x20, 0x00, 0x00])

const say = (what) => process.stdout.write(`${JSON.stringify(what)}\n`)

function open() {
  const dht = new DHT({ bootstrap, host: '127.0.0.1', connectionKeepAlive: 1000, firewalled: false })
  return new Hyperswarm({ dht, maxPeers: 1024 })
}

function bare() {
  global.gc?.()
  say({ rss: process.memoryUsage.rss() })
}

/** Counts messages of kind COUNT, as a stream would be, and sends the count on request. */
async function echo() {
  const swarm = open()
  swarm.on('connection', (stream) => {
    let counted = 0
    stream.on('error', () => {})
    stream.on('data', (message) => {
      if (message[0] === ECHO) stream.write(message)
      else if (message[0] === COUNT) counted += message.length
      else if (message[0] === REPORT) {
        stream.write(Buffer.from(String(counted)))
        counted = 0
      }
    })
  })
  await swarm.join(Buffer.from(topic, 'hex'), { client: false }).flushed()
  say({ ready: true })
}

async function ask() {
  const swarm = open()
  swarm.join(Buffer.from(topic, 'hex'), { server: false })
  const [stream] = await new Promise((resolve) => swarm.once('connection', (...found) => resolve(found)))
  let answered = null
  stream.on('error', () => {})
  stream.on('data', (message) => answered(message))
  const call = (message) =>
    new Promise((resolve) => {
      answered = resolve
      stream.write(message)
    })
  say({ ready: true })
  for await (const _ of readline.createInterface({ input: process.stdin })) {
    const took = []
    const small = Buffer.alloc(100, ECHO)
    for (let i = 0; i < 1000; i++) {
      const since = process.hrtime.bigint()
      await call(small)
      took.push(Number(process.hrtime.bigint() - since) / 1e3)
    }
    const message = Buffer.alloc(size, COUNT)
    const since = process.hrtime.bigint()
    for (let sent = 0; sent < total; sent += size) if (!stream.write(message)) await new Promise((resolve) => stream.once('drain', resolve))
    const arrived = Number(await call(Buffer.of(REPORT)))
    const seconds = Number(process.hrtime.bigint() - since) / 1e9
    say({ echo_us: took.sort((a, b) => a - b)[500], messages_per_second: arrived / size / seconds })
  }
}

async function greedy() {
  const swarm = open()
  swarm.on('connection', (stream) => {
    stream.on('error', () => {})
    stream.on('data', () => {})
    const preface = Buffer.from([0x48, 0x01, 0xff, 0xff, 0xff, 0x7f])
    if (stream.isInitiator) stream.write(preface)
    else stream.once('data', () => stream.write(preface))
  })
  await swarm.join(Buffer.from(topic, 'hex')).flushed()
  say({ ready: true })
}

async function crowd() {
  const swarms = Array.from({ length: count }, open)
  await Promise.all(swarms.map((swarm) => swarm.dht.fullyBootstrapped()))
  say({ ready: true })
  let opened = 0
  for (const swarm of swarms) {
    swarm.on('connection', (stream) => {
      stream.on('error', () => {})
      stream.on('data', () => {})
      stream.write(PREFACE)
      if (++opened === count) say({ opened })
    })
  }
  for await (const _ of readline.createInterface({ input: process.stdin })) {
    for (const swarm of swarms) swarm.join(Buffer.from(topic, 'hex'), { server: false })
  }
}

process.stdin.on('end', () => process.exit()).resume()
if (role === 'ask' || role === 'crowd') process.stdin.pause()
;({ bare, echo, ask, greedy, crowd })[role]()
