// The cases of ../../test_vectors.json, which the Python client passes too (tests/sdk/python/test_vectors.py).

import assert from 'node:assert/strict'
import { readFileSync } from 'node:fs'
import { test } from 'node:test'
import { fromAnswer } from '../src/errors.js'
import { canResumeAfter, pauseMs } from '../src/retries.js'
import { END, event, events, failure, hangUp, json, REQUEST, scripted, WHOLE, words } from './servers.js'

const vectors = JSON.parse(readFileSync(new URL('../../test_vectors.json', import.meta.url), 'utf8'))

for (const vector of vectors.errors) {
  test(`error: ${vector.name}`, () => {
    const error = fromAnswer(vector.status, vector.body, (name) => vector.headers[name] ?? null)
    assert.equal(error.name, vector.class.javascript ?? vector.class)
    assert.deepEqual(
      [error.status, error.code, error.hint, error.requestId, error.param, error.retryAfterMs],
      [vector.status, vector.code, vector.hint, vector.request_id, vector.param, vector.retry_after_ms],
    )
    if (vector.message !== null) assert.equal(error.message, vector.message)
  })
}

for (const vector of vectors.retries) {
  test(`retry: ${vector.name}`, () => {
    const after = vector.retry_after_ms === null ? null : String(vector.retry_after_ms)
    const error = fromAnswer(vector.status, { error: { code: vector.code } }, (name) => (name === 'retry-after-ms' ? after : null))
    const attempts = { failed: vector.failures - 1, maxRetries: 2, remainingMs: vector.left_ms, random: () => 0.5 }
    const isFinal = vector.status === null && !canResumeAfter(error)
    const pause = isFinal ? null : pauseMs(error, attempts)
    assert.equal(pause !== null, vector.retried)
    if (pause !== null) assert.ok(pause >= vector.at_least_ms, `${pause}`)
  })
}

const camel = (name) => name.replace(/_[a-z]/g, (hump) => hump[1].toUpperCase())
const camelKeys = (record) => record && Object.fromEntries(Object.entries(record).map(([name, value]) => [camel(name), value]))

/** The content of an answer, in the form of the vectors. */
function plainAnswer({ text, finishReason, toolCalls, logprobs, message, reasoning }) {
  const plain = ({ token, logprob, bytes, top }) => ({ token, logprob, bytes: [...bytes], top: top.map(plain) })
  return {
    text,
    finish_reason: finishReason,
    tool_calls: toolCalls,
    logprobs: logprobs.map(plain),
    message,
    ...(reasoning ? { reasoning } : {}),
  }
}

for (const vector of vectors.answers) {
  test(`answer: ${vector.name}`, async (context) => {
    const { client } = await scripted(context, json(vector.whole))
    assert.deepEqual(plainAnswer(await client.inference({ prompt: 'hi' })), vector.answer)
  })

  test(`stream, broken after each piece: ${vector.name}`, async (context) => {
    const parts = vector.pieces.map((piece, index) => event(piece, `${REQUEST}-${index + 1}`))
    // Each connection sends one more piece, and repeats those before.
    const broken = parts.map((_, count) => events(parts.slice(0, count + 1), 'break'))
    const { client, seen } = await scripted(context, ...broken, events([...parts, event(vector.end), ...END.slice(1)], 'end'))
    const stream = client.stream({ prompt: 'hi' })
    const texts = []
    for await (const piece of stream) texts.push(piece)
    assert.deepEqual(texts, vector.texts)
    assert.deepEqual(plainAnswer(stream.answer), vector.answer)
    assert.deepEqual(stream.toolCalls, vector.answer.tool_calls)
    assert.deepEqual(
      seen.map(({ headers }) => headers['last-event-id']?.split('-')[1] ?? null),
      [null, ...parts.map((_, index) => String(index + 1))],
    )
  })
}

for (const vector of vectors.requests) {
  test(`request: ${vector.name}`, async (context) => {
    const { client, seen } = await scripted(context, json(WHOLE))
    await client.inference(camelKeys(vector.options))
    assert.deepEqual(seen[0].body, camelKeys(vector.options))
  })
}

for (const vector of vectors.quotas) {
  test(`quota: ${vector.name}`, async (context) => {
    const { client } = await scripted(context, json(vector.wire))
    const { credits, budget, allowance } = await client.quota()
    assert.deepEqual([credits, budget, allowance], [vector.credits, vector.budget, vector.allowance].map(camelKeys))
  })
}

function scriptedReply(reply) {
  if (reply.answer) return json(WHOLE)
  if (reply.models) return json({ data: [{ id: 'echo' }] })
  if (reply.hang_up) return hangUp
  if (reply.status) return failure(reply.status, reply.code, reply.headers)
  const parts = reply.pieces.flatMap((piece, index) => words(piece, reply.first + index))
  if (reply.error) parts.push(event({ error: { message: 'it ended', code: reply.error } }))
  if (reply.then === 'done') parts.push(...END)
  return events(parts, reply.then === 'done' ? 'end' : reply.then)
}

/** The pieces of a stream and the code of the error. */
async function outcome(client, vector) {
  const pieces = []
  try {
    if (vector.call === 'inference') await client.inference({ prompt: 'hi' })
    else if (vector.call === 'models') await client.models()
    else for await (const piece of client.stream({ prompt: 'hi' })) if (pieces.push(piece) === vector.stop_after) break
  } catch (error) {
    return [pieces.length ? pieces : null, error.code]
  }
  return [pieces.length ? pieces : null, null]
}

for (const vector of vectors.calls) {
  test(`call: ${vector.name}`, async (context) => {
    const { client, seen, withdrawn, onceWithdrawn } = await scripted(context, ...vector.replies.map(scriptedReply))
    assert.deepEqual(await outcome(client, vector), [vector.pieces, vector.error])
    const used = seen.map(({ headers }) => headers['idempotency-key'] ?? null)
    const keys = [...new Set(used.filter((key) => key !== null))]
    assert.deepEqual(
      used.map((key) => (key === null ? null : 'abc'[keys.indexOf(key)])),
      vector.keys,
    )
    const lastEvents = seen.map(({ headers }) => headers['last-event-id']?.split('-')[1] ?? null)
    assert.deepEqual(
      lastEvents,
      vector.last_events.map((number) => (number === null ? null : String(number))),
    )
    if (vector.canceled) await onceWithdrawn()
    assert.deepEqual(withdrawn, vector.canceled ? [used[0]] : [])
  })
}
