'use strict'
const assert = require('node:assert/strict')
const { test } = require('node:test')
const { Connection, CREDIT, DATA, MAX_PART, MAX_WINDOW, OVERHEAD, PART } = require('../connections')
const { TYPE } = require('../frames')
const { Stream } = require('./fakes')

const FIRST = 8192
const PREFACE = Buffer.from([0x48, 1, 0, 32, 0, 0])

function connect({ isInitiator = false, adopts = false } = {}) {
  const stream = new Stream(isInitiator)
  const seen = { frames: [], opened: null, closed: 0, adopted: null }
  const owner = {
    outbox: {
      send: (type, id, payload) => seen.frames.push([type, id, payload]),
      json: (type, id, value) => seen.frames.push([type, id, value]),
    },
    firstBytes: FIRST,
    pathOf: () => 'direct',
    adopt: (_connection, message) => {
      seen.adopted = message
      return adopts
    },
    opened: (_connection, allowance) => {
      seen.opened = allowance
    },
    closed: () => seen.closed++,
    receive: (_connection, message) => message[0] === 3 && message.length > 1,
  }
  const connection = new Connection(7, stream, { topics: [] }, owner)
  return { connection, stream, seen, say: (...bytes) => stream.emit('data', Buffer.from(bytes.flat())) }
}

function opened(options) {
  const made = connect(options)
  made.stream.emit('data', PREFACE)
  return made
}

const message = (kind, size) => Buffer.concat([Buffer.of(kind), Buffer.alloc(size)])
const credit = (value) => {
  const made = Buffer.alloc(5, CREDIT)
  made.writeUInt32LE(value, 1)
  return made
}

test('the side that dialled sends the preface first, the other answers', () => {
  assert.deepEqual(connect({ isInitiator: true }).stream.written, [PREFACE])
  const { stream, seen } = connect()
  assert.deepEqual(stream.written, [])
  stream.emit('data', PREFACE)
  assert.deepEqual(stream.written, [PREFACE])
  assert.equal(seen.opened, FIRST)
  stream.destroy()
})

test('without a preface it ends', (context) => {
  context.mock.timers.enable({ apis: ['setTimeout'] })
  const { stream, seen } = connect()
  context.mock.timers.tick(1500)
  assert.equal(stream.failure.code, 'NO_PREFACE')
  assert.equal(seen.opened, null)
  assert.equal(seen.closed, 1)
})

test('another preface ends it, unless somebody takes it over', () => {
  for (const bytes of [[0x48, 2, 0, 0, 0, 0], [0x48, 1], [], [0, 1, 2]]) {
    const { stream, say } = connect()
    say(bytes)
    assert.equal(stream.failure.code, 'BAD_PREFACE')
  }
  const { stream, seen, say } = connect({ adopts: true })
  say([1, 2, 3])
  assert.deepEqual(seen.adopted, Buffer.from([1, 2, 3]))
  assert.equal(stream.isDestroyed, false)
  const dialled = connect({ isInitiator: true, adopts: true })
  dialled.say([1, 2, 3])
  assert.equal(dialled.stream.failure.code, 'BAD_PREFACE')
})

test('messages, parts and credit go to Python without their kind', () => {
  const { stream, seen, say } = opened()
  say(DATA, 1, 2)
  say(PART, 3)
  stream.emit('data', credit(1000))
  const expected = [
    [TYPE.DATA, 7, Buffer.from([1, 2])],
    [TYPE.PART, 7, Buffer.from([3])],
    [TYPE.CREDIT, 7, credit(1000).subarray(1)],
  ]
  assert.deepEqual(seen.frames, expected)
})

test('a peer that sends exactly what it was granted stays, one byte more and it goes', () => {
  const { connection, stream } = opened()
  stream.emit('data', message(DATA, FIRST - OVERHEAD))
  assert.equal(stream.isDestroyed, false)
  connection.grant(OVERHEAD + 10)
  stream.emit('data', message(DATA, 10))
  assert.equal(stream.isDestroyed, false)
  stream.emit('data', message(DATA, 0))
  assert.equal(stream.failure.code, 'FLOW_CONTROL')
})

test('a part longer than parts are ends it, whatever was granted', () => {
  const { connection, stream } = opened()
  connection.grant(MAX_WINDOW)
  stream.emit('data', message(PART, MAX_PART))
  assert.equal(stream.isDestroyed, false)
  stream.emit('data', message(PART, MAX_PART + 1))
  assert.equal(stream.failure.code, 'FLOW_CONTROL')
})

test('a stranger who announces a long message is cut off before there is room for it', () => {
  const { stream } = opened()
  stream._len = 16 * 1024 * 1024 - 1
  stream.rawStream.emit('data')
  assert.equal(stream.failure.code, 'FLOW_CONTROL')
})

test('a peer that grants what nobody needs, or crumbs, goes', () => {
  for (const credits of [[MAX_WINDOW + 1], [MAX_WINDOW, OVERHEAD], [OVERHEAD - 1], [0]]) {
    const { stream } = opened()
    for (const value of credits) stream.emit('data', credit(value))
    assert.equal(stream.failure.code, 'FLOW_CONTROL', `${credits}`)
  }
  const { connection, stream } = opened()
  stream.emit('data', credit(MAX_WINDOW))
  connection.send(message(DATA, 100))
  stream.emit('data', credit(100 + OVERHEAD))
  assert.equal(stream.isDestroyed, false)
})

test('a peer that grants and does not take goes', () => {
  const { connection, stream } = opened()
  stream._writableState.buffered = 100 * 1024 * 1024
  connection.send(message(DATA, 1))
  assert.equal(stream.failure.code, 'FLOW_CONTROL')
})

test('what is no message ends it', () => {
  const { stream, seen, say } = opened()
  say(3, 1) // one that the owner takes
  assert.equal(stream.isDestroyed, false)
  assert.deepEqual(seen.frames, [])
  for (const bytes of [[], [3], [0x48, 1], [255, 1], [CREDIT], [CREDIT, 1, 2, 3], [CREDIT, 1, 2, 3, 4, 5]]) {
    const { stream, say } = opened()
    say(bytes)
    assert.equal(stream.failure.code, 'BAD_MESSAGE', `${bytes}`)
  }
})

test('a changed path is reported once it is open', () => {
  const early = connect()
  early.stream.rawStream.emit('remote-changed')
  assert.deepEqual(early.seen.frames, [])
  const { stream, seen } = opened()
  stream.rawStream.emit('remote-changed')
  assert.deepEqual(seen.frames, [[TYPE.EVENT, 7, { event: 'path-changed', path: 'direct', host: '203.0.113.5', port: 4737 }]])
  early.stream.destroy()
})
