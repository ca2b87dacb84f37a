'use strict'
const assert = require('node:assert/strict')
const { test } = require('node:test')
const { BadFrame, MAX_FRAME, Outbox, Parser, TYPE } = require('../frames')
const { collector, frame } = require('./fakes')

const SENT = [
  [TYPE.DATA, 7, Buffer.from('hello')],
  [TYPE.CLOSE, 2 ** 32 - 1, Buffer.alloc(0)],
  [TYPE.CALL, 0, Buffer.alloc(300, 1)],
]
const STREAM = Buffer.concat(SENT.map(([type, id, payload]) => frame(type, id, payload)))

function parsed(chunks) {
  const got = []
  const parser = new Parser((type, id, chunk, begin, end) => got.push([type, id, Buffer.from(chunk.subarray(begin, end))]))
  for (const chunk of chunks) parser.feed(chunk)
  return got
}

test('split at every byte, and at every place in two, gives what the whole gives', () => {
  assert.deepEqual(parsed([STREAM]), SENT)
  assert.deepEqual(parsed([...STREAM].map((byte) => Buffer.of(byte))), SENT)
  for (let at = 0; at <= STREAM.length; at++) assert.deepEqual(parsed([STREAM.subarray(0, at), STREAM.subarray(at)]), SENT)
})

test('a length that no frame has is refused before anything is kept', () => {
  for (const length of [0, 4, MAX_FRAME + 1, 2 ** 32 - 1]) {
    const head = Buffer.alloc(9)
    head.writeUInt32LE(length)
    assert.throws(() => parsed([head]), BadFrame)
  }
})

test('garbage is refused or waits for more', () => {
  for (let seed = 1; seed < 500; seed++) {
    const garbage = Buffer.from(Array.from({ length: seed % 40 }, (_, index) => (seed * 2654435761 * (index + 1)) % 256))
    try {
      parsed([garbage])
    } catch (error) {
      assert(error instanceof BadFrame, error)
    }
  }
})

test('the frames of one turn of the loop leave as one write', async () => {
  const socket = collector()
  const outbox = new Outbox(socket)
  for (const [type, id, payload] of SENT) outbox.send(type, id, payload)
  assert.equal(socket.written.length, 0)
  await new Promise(setImmediate)
  assert.deepEqual(socket.written, [STREAM])
  outbox.json(TYPE.EVENT, 3, { a: 1 })
  await new Promise(setImmediate)
  assert.deepEqual(socket.written[1], frame(TYPE.EVENT, 3, Buffer.from('{"a":1}')))
})
