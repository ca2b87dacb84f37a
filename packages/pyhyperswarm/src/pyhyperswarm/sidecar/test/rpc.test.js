'use strict'
const assert = require('node:assert/strict')
const { test } = require('node:test')
const NoiseStream = require('@hyperswarm/secret-stream')
const ProtomuxRPC = require('protomux-rpc')
const { TYPE } = require('../frames')
const { adopt, answer } = require('../rpc')

const STRANGER_MS = 5000
const MAX_STRANGERS = 20

/** A stock client at the other end of an adopted stream, and the messages sent to Python. */
async function visit() {
  const [client, stream] = [new NoiseStream(true), new NoiseStream(false)]
  client.rawStream.pipe(stream.rawStream).pipe(client.rawStream)
  for (const each of [client, stream]) each.on('error', () => {})
  const messages = []
  const arrived = new Promise((resolve) => stream.once('data', resolve))
  const rpc = new ProtomuxRPC(client, { id: stream.publicKey, valueEncoding: null })
  const message = await arrived
  const listeners = []
  const outbox = {
    send(type, number, payload = Buffer.alloc(0)) {
      assert.equal(type, TYPE.REQUEST)
      messages.push({ number, payload })
      listeners.shift()?.()
    },
  }
  const connection = { stream, mostBytes: 0 }
  adopt(connection, message, stream.publicKey, outbox)
  const waitForMessage = async (count) => {
    while (messages.length < count) await new Promise((resolve) => listeners.push(resolve))
    return messages[count - 1]
  }
  return {
    client,
    stream,
    connection,
    rpc,
    messages,
    waitForMessage,
    ask: (method, value) => rpc.request(method, Buffer.from(value)).catch((error) => error),
  }
}

const value = (text) => Buffer.concat([Buffer.of(0), Buffer.from(text)])
const refusal = Buffer.concat([Buffer.of(1), Buffer.from('{"code":"not_certified","message":"who are you?"}')])

async function askAndAnswer(visitor, response) {
  const asking = visitor.ask('shout', 'hello')
  const { number } = await visitor.waitForMessage(visitor.messages.length + 1)
  answer(number, response)
  return asking
}

test('a request goes to Python with key, connection and method, and comes back with a value or a refusal', async () => {
  const visitor = await visit()
  const asking = visitor.ask('shout', 'hello')
  const { number, payload } = await visitor.waitForMessage(1)
  const head = [visitor.client.publicKey, visitor.stream.handshakeHash, Buffer.of(5, 0), Buffer.from('shouthello')]
  assert.deepEqual(payload, Buffer.concat(head))
  assert.equal(visitor.stream.handshakeHash.length, 64)
  answer(number, value('HELLO'))
  assert.equal((await asking).toString(), 'HELLO')
  const refused = await askAndAnswer(visitor, refusal)
  assert.deepEqual([refused.code, refused.cause.code, refused.cause.message], ['REQUEST_ERROR', 'not_certified', 'who are you?'])
  visitor.client.destroy()
})

test('a client whose requests were all refused is disconnected, one with an answer stays', async (context) => {
  context.mock.timers.enable({ apis: ['setTimeout'] })
  const [known, stranger] = [await visit(), await visit()]
  await askAndAnswer(known, value('welcome'))
  await askAndAnswer(stranger, refusal)
  context.mock.timers.tick(STRANGER_MS)
  assert.equal(stranger.stream.destroying, true)
  assert.equal(known.stream.destroying, false)
  known.client.destroy()
})

test('only a few strangers are allowed at a time', async () => {
  const visitors = []
  for (let number = 0; number < MAX_STRANGERS; number++) visitors.push(await visit())
  assert.equal((await visit()).stream.destroying, true)
  await askAndAnswer(visitors[0], value('welcome'))
  assert.equal(
    visitors.some(({ stream }) => stream.destroying),
    false,
  )
  const next = await visit()
  assert.equal(next.stream.destroying, false)
  for (const { client } of [...visitors, next]) client.destroy()
})

test('Python learns that the client of a request disconnected, and late answers are ignored', async () => {
  const visitor = await visit()
  const asking = visitor.ask('shout', 'hello')
  const { number } = await visitor.waitForMessage(1)
  visitor.client.destroy()
  await new Promise((resolve) => visitor.stream.once('close', resolve))
  assert.deepEqual(visitor.messages.slice(1), [{ number, payload: Buffer.alloc(0) }])
  answer(number, value('HELLO'))
  assert.equal((await asking).code, 'CHANNEL_CLOSED')
})

test('Python learns that a known client disconnected, but not a stranger', async () => {
  const [known, stranger] = [await visit(), await visit()]
  await askAndAnswer(known, value('welcome'))
  await askAndAnswer(stranger, refusal)
  assert.equal(stranger.connection.mostBytes, 0)
  assert.ok(known.connection.mostBytes > 1024 * 1024)
  for (const visitor of [known, stranger]) {
    visitor.client.destroy()
    await new Promise((resolve) => visitor.stream.once('close', resolve))
  }
  assert.deepEqual(known.messages.slice(1), [{ number: 0, payload: known.stream.handshakeHash }])
  assert.equal(stranger.messages.length, 1)
})

test('a client may have 32 requests in progress', async () => {
  const visitor = await visit()
  const asking = Array.from({ length: 33 }, () => visitor.ask('shout', 'hello'))
  assert.equal((await asking[32]).cause.code, 'BUSY')
  for (const { number } of [...visitor.messages]) answer(number, value('HELLO'))
  assert.equal(
    (await Promise.all(asking.slice(0, 32))).every((response) => response.toString() === 'HELLO'),
    true,
  )
  visitor.client.destroy()
})
