'use strict'
const assert = require('node:assert/strict')
const { spawn } = require('node:child_process')
const path = require('node:path')
const { after, test } = require('node:test')
const { Parser, TYPE } = require('../frames')
const { frame } = require('./fakes')

const OPTIONS = { bootstrap: [], relays: [], host: '127.0.0.1', port: null, open: true, firstBytes: 8192 }
const HELLO = frame(TYPE.HELLO, 0, Buffer.concat([Buffer.alloc(32, 1), Buffer.from(JSON.stringify(OPTIONS))]))
const call = (id, value) => frame(TYPE.CALL, id, Buffer.from(JSON.stringify(value)))

const children = []
after(() => {
  for (const child of children) child.kill('SIGKILL')
})

/** Starts a sidecar at the other end of a pipe; returns the pipe, a function that waits for a message, and the exit code's promise. */
function sidecar() {
  const stdio = ['ignore', 'ignore', 'ignore', 'pipe']
  const child = spawn(process.execPath, [path.join(__dirname, '..', 'main.js'), '3'], { stdio })
  children.push(child)
  const messages = []
  const waiting = []
  const parser = new Parser((type, id, chunk, begin, end) => {
    messages.push([type, id, chunk.toString('utf8', begin, end)])
    for (const check of waiting) check()
  })
  child.stdio[3].on('data', (chunk) => parser.feed(chunk)).on('error', () => {})
  const until = (type) =>
    new Promise((resolve) => {
      const check = () => {
        const found = messages.find((each) => each[0] === type)
        if (found) resolve(found)
      }
      waiting.push(check)
      check()
    })
  return { pipe: child.stdio[3], until, ended: new Promise((resolve) => child.on('exit', resolve)) }
}

const BAD = {
  'a length of 0': Buffer.alloc(9),
  'a length above the limit': Buffer.alloc(9, 255),
  'a call before HELLO': call(1, { method: 'stats' }),
  'a HELLO without a seed': frame(TYPE.HELLO, 0, Buffer.from('{}')),
  'a HELLO that is not JSON': frame(TYPE.HELLO, 0, Buffer.alloc(40)),
  'HELLO twice': Buffer.concat([HELLO, HELLO]),
  'an unknown type': Buffer.concat([HELLO, frame(0x77, 0)]),
  'an unknown call': Buffer.concat([HELLO, call(1, { method: 'constructor' })]),
  'a call that is not JSON': Buffer.concat([HELLO, frame(TYPE.CALL, 1, Buffer.from('{'))]),
  'a credit of three bytes': Buffer.concat([HELLO, frame(TYPE.CREDIT, 1, Buffer.alloc(3))]),
  'a close without a mode': Buffer.concat([HELLO, frame(TYPE.CLOSE, 1)]),
  'an answer without a request': Buffer.concat([HELLO, frame(TYPE.RESPONSE, 1, Buffer.alloc(1))]),
}

for (const [name, bytes] of Object.entries(BAD)) {
  test(`the sidecar exits with 65 after ${name}`, async () => {
    const { pipe, ended } = sidecar()
    pipe.write(bytes)
    assert.equal(await ended, 65)
  })
}

test('the sidecar becomes ready, answers, and exits with its parent', async () => {
  const { pipe, until, ended } = sidecar()
  // Byte by byte, unlike any real parent.
  for (const byte of Buffer.concat([HELLO, call(9, { method: 'stats' })])) pipe.write(Buffer.of(byte))
  await until(TYPE.READY)
  const [, id, text] = await until(TYPE.ANSWER)
  assert.equal(id, 9)
  assert.equal(JSON.parse(text).value.connections, 0)
  pipe.end()
  assert.equal(await ended, 0)
})

test('a call that fails is answered with its error, and what concerns nobody is dropped', async () => {
  const { pipe, until, ended } = sidecar()
  const strays = [frame(TYPE.DATA, 5, Buffer.alloc(10)), frame(TYPE.CREDIT, 5, Buffer.alloc(4)), frame(TYPE.CLOSE, 5, Buffer.alloc(1))]
  pipe.write(Buffer.concat([HELLO, ...strays, call(1, { method: 'join', topic: 'short', server: true, client: true })]))
  assert.match((await until(TYPE.ANSWER))[2], /"error":/)
  pipe.end()
  assert.equal(await ended, 0)
})
