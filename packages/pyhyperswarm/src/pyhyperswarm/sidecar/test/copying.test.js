'use strict'
const assert = require('node:assert/strict')
const fs = require('node:fs')
const os = require('node:os')
const path = require('node:path')
const { after, test } = require('node:test')
const { Copying } = require('../copying')
const { Stream } = require('./fakes')

const [WATCH, HAVE, ASK, SLICE, NO, CANCEL] = [3, 4, 6, 7, 8, 9]
const BLOCK = 1024 * 1024
const DIGEST = Buffer.alloc(32, 7)
const hex = DIGEST.toString('hex')
const folder = fs.mkdtempSync(path.join(os.tmpdir(), 'copying-'))
const whole = { path: path.join(folder, 'whole'), size: 8 * BLOCK }
fs.writeFileSync(whole.path, Buffer.alloc(whole.size, 5))
after(() => fs.rmSync(folder, { recursive: true }))

const index = (value) => Buffer.of(value, 0, 0, 0)
const message = (kind, ...rest) => Buffer.concat([Buffer.of(kind), DIGEST, ...rest])
const turn = () => new Promise(setImmediate)

/** A holder of the file, and what it tells Python. */
function holder() {
  const said = []
  const copying = new Copying({ json: (_type, _id, event) => said.push(event) })
  let peers = 0
  const connect = ({ isStranger = false, allow = true } = {}) => {
    const stream = new Stream(false)
    stream.remotePublicKey = Buffer.alloc(32, ++peers)
    const failures = []
    const connection = { stream, isStranger, info: { topics: [], explicit: false }, fail: (code) => failures.push(code) }
    copying.opened(connection)
    const key = stream.remotePublicKey.toString('hex')
    const say = (...parts) => copying.receive(connection, message(...parts))
    if (allow) {
      assert(say(WATCH, Buffer.from('grant')))
      copying.calls.copyAllow({ key, digest: hex, ...whole })
    }
    const kinds = () => stream.written.map((each) => each[0])
    return { connection, stream, key, say, kinds, failures }
  }
  return { copying, said, connect }
}

/** Waits until a peer has got a message of this kind so many times. */
async function until(peer, kind, count) {
  while (peer.kinds().filter((each) => each === kind).length < count) await turn()
}

test('Python decides whether a peer may read, which then gets the bitmap once', () => {
  const { said, connect, copying } = holder()
  const peer = connect({ allow: false })
  assert(peer.say(WATCH, Buffer.from('grant')))
  const grant = Buffer.from('grant').toString('hex')
  assert.deepEqual(said, [{ event: 'copy', kind: 'grant', key: peer.key, digest: hex, grant }])
  assert.deepEqual(peer.stream.written, [])
  copying.calls.copyAllow({ key: peer.key, digest: hex, ...whole })
  copying.calls.copyAllow({ key: peer.key, digest: hex, ...whole })
  assert.deepEqual(peer.stream.written, [message(HAVE, Buffer.alloc(1, 255))])
  copying.calls.copyDeny({ key: peer.key, digest: hex })
  assert.deepEqual(peer.stream.written[1], message(HAVE))
  assert.equal(copying.files.size, 0)
})

test('a peer that may not read is refused', () => {
  const { connect } = holder()
  const peer = connect({ allow: false })
  assert(peer.say(ASK, index(0)))
  peer.say(WATCH, Buffer.from('grant'))
  assert(peer.say(ASK, index(0)))
  assert.deepEqual(peer.kinds(), [NO, NO])
})

test('the only watcher may ask for four blocks, one of several for two in all', async () => {
  const { connect } = holder()
  const alone = connect()
  for (let at = 0; at < 5; at++) alone.say(ASK, index(at))
  assert.deepEqual(alone.kinds(), [HAVE, NO])
  await until(alone, SLICE, 64)
  const other = connect()
  for (const [peer, at] of [
    [alone, 5],
    [other, 0],
    [other, 1],
    [alone, 6],
  ])
    peer.say(ASK, index(at))
  assert.equal(other.kinds().at(-1), NO)
  assert.equal(alone.kinds().at(-1), NO)
  await until(other, SLICE, 16)
})

test('a peer that takes nothing does not keep the others waiting', async (context) => {
  const { connect } = holder()
  const [stuck, other] = [connect(), connect()]
  stuck.stream.hasRoom = false
  for (const at of [0, 1]) stuck.say(ASK, index(at))
  await until(stuck, SLICE, 1)
  other.say(ASK, index(0))
  assert.equal(other.kinds().at(-1), NO)
  context.mock.timers.enable({ apis: ['Date'], now: Date.now() + 600 })
  other.say(ASK, index(0))
  await until(other, SLICE, 16)
  assert(stuck.say(ASK, index(2)))
  assert.equal(stuck.kinds().at(-1), NO)
})

test('a cancel is confirmed with a no, and the rest of the block does not leave', async () => {
  const { connect } = holder()
  const peer = connect()
  peer.stream.hasRoom = false
  peer.say(ASK, index(3))
  await until(peer, SLICE, 1)
  assert(peer.say(CANCEL, index(3)))
  peer.stream.emit('drain')
  await until(peer, NO, 1)
  assert.deepEqual(peer.kinds(), [HAVE, SLICE, NO])
  assert.deepEqual(peer.stream.written.at(-1), message(NO, index(3)))
})

test('a file that became shorter is not offered any more', async () => {
  const { connect, copying } = holder()
  const peer = connect()
  const other = { path: path.join(folder, 'short'), size: 8 * BLOCK }
  fs.writeFileSync(other.path, Buffer.alloc(10))
  copying.calls.copyDeny({ key: peer.key, digest: hex })
  peer.say(WATCH, Buffer.from('grant'))
  copying.calls.copyAllow({ key: peer.key, digest: hex, ...other })
  peer.say(ASK, index(1))
  await until(peer, HAVE, 4)
  assert.deepEqual(peer.stream.written.at(-1), message(HAVE))
})

test('strangers may watch four files, and nothing else', () => {
  const { connect, copying } = holder()
  const stranger = connect({ isStranger: true, allow: false })
  assert.equal(stranger.say(ASK, index(0)), false)
  const watch = (value) => copying.receive(stranger.connection, Buffer.concat([Buffer.of(WATCH), Buffer.alloc(32, value), Buffer.of(1)]))
  for (let value = 0; value < 4; value++) assert(watch(value))
  assert.equal(watch(4), false)
  stranger.connection.isStranger = false
  assert(watch(4))
  assert.equal(watch(4), false) // watched already
})

test('what is too long, too short or too much ends the connection', () => {
  const { connect } = holder()
  assert.equal(connect().say(ASK), false)
  assert.equal(connect().say(ASK, Buffer.alloc(3)), false)
  assert.equal(connect().say(77, index(0)), false)
  assert.equal(connect({ allow: false }).say(WATCH, Buffer.alloc(4097)), false)
  assert.equal(connect().say(SLICE, index(0), Buffer.alloc(1)), false)
  const busy = connect()
  assert(busy.say(ASK, index(0)))
  assert.equal(busy.say(ASK, index(0)), false) // asked twice
  const flooding = connect()
  let asked = 0
  while (flooding.say(ASK, index(200))) asked += 1
  assert(asked > 1000 && asked < 2000)
})

test('a closed connection releases the file', async () => {
  const { connect, copying } = holder()
  const [one, other] = [connect(), connect()]
  one.say(ASK, index(0))
  one.stream.destroy()
  copying.closed(one.connection)
  copying.closed(other.connection)
  while (copying.files.size > 0) await turn()
  assert.equal(copying.peers.size, 0)
})
