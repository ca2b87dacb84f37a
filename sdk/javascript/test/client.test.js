import assert from 'node:assert/strict'
import { test } from 'node:test'
import {
  AIInferenceClient,
  AnswerBroken,
  ConnectionFailed,
  DeadlineExceeded,
  RateLimited,
  Unavailable,
  UnknownModel,
} from '../src/index.js'
import { failure, hangUp, json, KEY, nobody, raw, scripted, silence, WHOLE } from './servers.js'

const KEY_FORM = /^[0-9a-f]{32}$/
const ASKED = { prompt: 'Explain quantum computing', model: 'llama3', maxTokens: 500 }

test('a prompt and its answer', async (context) => {
  const { client, seen } = await scripted(context, json(WHOLE))
  const answer = await client.inference(ASKED)
  assert.equal(answer.text, 'three small words')
  assert.equal(answer.usage.totalTokens, 5)
  const [{ method, url, headers, body }] = seen
  assert.deepEqual([method, url, body], ['POST', '/api/inference', ASKED])
  assert.equal(headers.authorization, `Bearer ${KEY}`)
  assert.equal(headers['content-type'], 'application/json')
  assert.match(headers['idempotency-key'], KEY_FORM)
})

test('what may pass is asked again under the same key, and another request has another', async (context) => {
  const { client, seen, withdrawn } = await scripted(context, failure(503, 'overloaded', { 'retry-after-ms': '1' }), hangUp, json(WHOLE))
  await client.inference(ASKED)
  await client.inference(ASKED)
  const keys = seen.map(({ headers }) => headers['idempotency-key'])
  assert.equal(keys.length, 4)
  assert.equal(new Set(keys.slice(0, 3)).size, 1)
  assert.notEqual(keys[3], keys[0])
  assert.ok(seen.every(({ body }) => JSON.stringify(body) === JSON.stringify(ASKED)))
  assert.deepEqual(withdrawn, [])
})

test('a proxy that answers in HTML is asked again, too', async (context) => {
  const { client, seen } = await scripted(context, json('<html>Bad Gateway</html>', 502, { 'content-type': 'text/html' }), json(WHOLE))
  await client.inference(ASKED)
  assert.equal(seen.length, 2)
})

test('a request that is already running is retried more often than a failed one', async (context) => {
  const still = failure(409, 'in_progress', { 'retry-after-ms': '1' })
  const { client, seen } = await scripted(context, still, still, still, still, json(WHOLE))
  await client.inference(ASKED)
  assert.equal(seen.length, 5)
})

test('raises the failure after the configured number of attempts', async (context) => {
  const { baseUrl, seen } = await scripted(context, failure(503, 'draining'))
  const client = new AIInferenceClient({ apiKey: KEY, baseUrl, maxRetries: 1 })
  await assert.rejects(client.inference(ASKED), Unavailable)
  assert.equal(seen.length, 2)
})

test('what the caller has to change is not asked again, and says what', async (context) => {
  const { client, seen } = await scripted(context, failure(404, 'unknown_model', {}, { param: 'model' }))
  await assert.rejects(client.inference(ASKED), (error) => {
    assert.ok(error instanceof UnknownModel)
    assert.deepEqual(
      [error.code, error.message, error.hint, error.status, error.requestId, error.param],
      ['unknown_model', 'it was unknown_model', 'do better', 404, 'r-1', 'model'],
    )
    return true
  })
  assert.equal(seen.length, 1)
})

test('raises immediately if the wait would exceed the deadline', async (context) => {
  const { client, seen } = await scripted(context, failure(429, 'rate_limited', { 'retry-after': '3600' }))
  await assert.rejects(client.inference({ ...ASKED, timeoutMs: 5000 }), (error) => {
    return error instanceof RateLimited && error.retryAfterMs === 3_600_000
  })
  assert.equal(seen.length, 1)
})

test('where nobody listens the connection failed, with its reason', async () => {
  const client = new AIInferenceClient({ apiKey: KEY, baseUrl: await nobody(), maxRetries: 0 })
  await assert.rejects(client.models(), (error) => {
    assert.ok(error instanceof ConnectionFailed)
    assert.match(error.message, /failed: ECONNREFUSED/)
    assert.equal(error.status, null)
    assert.doesNotMatch(String(error.stack), new RegExp(KEY))
    return true
  })
})

// --- leaving early ---------------------------------------------------------------------------------------------------------------------

test('a gateway that never answers is left when the time is over, and told so', async (context) => {
  const { client, seen, withdrawn, onceWithdrawn } = await scripted(context, silence)
  await assert.rejects(client.inference({ ...ASKED, timeoutMs: 500 }), DeadlineExceeded)
  await onceWithdrawn()
  assert.deepEqual(withdrawn, [seen[0].headers['idempotency-key']])
})

test("a caller's signal ends a call with its reason, and frees the model", async (context) => {
  const control = new AbortController()
  const { client, seen, withdrawn, onceWithdrawn } = await scripted(context, () => control.abort(new Error('enough')))
  await assert.rejects(client.inference({ ...ASKED, signal: control.signal }), /enough/)
  await onceWithdrawn()
  assert.deepEqual(withdrawn, [seen[0].headers['idempotency-key']])
})

test('a signal that has been given before sends nothing', async (context) => {
  const { client, seen, withdrawn } = await scripted(context, json(WHOLE))
  const signal = AbortSignal.abort()
  await assert.rejects(client.inference({ ...ASKED, signal }), { name: 'AbortError' })
  await assert.rejects(client.models({ signal }), { name: 'AbortError' })
  await client.models().catch(() => undefined)
  assert.deepEqual([seen.length, withdrawn.length], [1, 0])
})

test('a request is withdrawn where it may run, and not where the gateway said how it ended', async () => {
  const endings = [
    [async () => Response.json({ error: { code: 'poison', message: 'no' } }, { status: 400 }), ['POST']],
    [async () => Promise.reject(new TypeError('fetch failed')), ['POST', 'DELETE']],
    [async () => new Response('<html>'), ['POST', 'DELETE']],
  ]
  for (const [answer, expected] of endings) {
    const methods = []
    const fetch = (_url, { method }) => {
      methods.push(method)
      return answer()
    }
    const client = new AIInferenceClient({ apiKey: KEY, baseUrl: 'http://127.0.0.1', maxRetries: 0, fetch })
    await assert.rejects(client.inference(ASKED))
    assert.deepEqual(methods, expected)
    methods.length = 0
    await assert.rejects(client.models())
    assert.deepEqual(methods, ['GET'])
  }
})

test('a signal ends the pause before another try', async (context) => {
  const control = new AbortController()
  const { client, seen } = await scripted(context, (response, one) => {
    failure(503, 'unavailable', { 'retry-after': '60' })(response, one)
    setImmediate(() => control.abort(new Error('enough')))
  })
  await assert.rejects(client.inference({ ...ASKED, signal: control.signal }), /enough/)
  assert.equal(seen.length, 1)
})

test('a signal ends the reading of a body, also where fetch takes no signal', async () => {
  const control = new AbortController()
  const body = new ReadableStream({ pull: () => new Promise(() => setImmediate(() => control.abort(new Error('enough')))) })
  const fetch = async (_url, { method }) => (method === 'DELETE' ? new Response('{}') : new Response(body))
  const client = new AIInferenceClient({ apiKey: KEY, baseUrl: 'http://127.0.0.1', fetch })
  await assert.rejects(client.inference({ ...ASKED, signal: control.signal }), /enough/)
})

// --- the rest of the API ---------------------------------------------------------------------------------------------------------------

test('models, usage, quota and embeddings are asked where they are', async (context) => {
  const { client, seen } = await scripted(
    context,
    json({ data: [{ id: 'echo' }] }),
    json({ user_id: 'u', request_count: 0, tokens_used: 0, days: [] }),
    json({ user_id: 'u', tier: 'free', limit_per_hour: 1, used_this_hour: 0, remaining: 1, resets_in_seconds: 0, limits: [] }),
    json({ data: [{ embedding: [1], index: 0 }], model: 'e5', usage: { prompt_tokens: 1, total_tokens: 1 } }),
  )
  assert.deepEqual(await client.models(), [{ id: 'echo', onlyEmbeds: false }])
  assert.equal((await client.usage()).tokensUsed, 0)
  assert.equal((await client.quota()).tier, 'free')
  assert.deepEqual((await client.embed({ input: 'a' })).vectors, [[1]])
  assert.deepEqual(
    seen.map(({ method, url, body }) => [method, url, body]),
    [
      ['GET', '/v1/models', null],
      ['GET', '/api/usage', null],
      ['GET', '/api/quota', null],
      ['POST', '/v1/embeddings', { input: 'a', encoding_format: 'float' }],
    ],
  )
})

test('a fetch of one’s own is used, at the address that was given', async () => {
  const asked = []
  const fetch = async (url, options) => {
    asked.push([url, options.credentials, options.redirect])
    return Response.json({ data: [] })
  }
  const client = new AIInferenceClient({ apiKey: KEY, baseUrl: 'https://ai.example.org/mesh/', fetch })
  assert.deepEqual(await client.models(), [])
  assert.deepEqual(asked, [['https://ai.example.org/mesh/v1/models', 'omit', 'manual']])
})

test('a redirect is not followed: the key and the prompt are for one address', async (context) => {
  const { client, seen } = await scripted(context, json('', 307, { location: 'https://elsewhere.example.org/' }))
  await assert.rejects(client.inference(ASKED), (error) => {
    return error instanceof AnswerBroken && /redirects to https:\/\/elsewhere/.test(error.message) && /baseUrl/.test(error.hint)
  })
  assert.equal(seen.length, 1)
})

// --- hostile servers -------------------------------------------------------------------------------------------------------------------

const HEAD = 'HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n'
const hostile = {
  'no HTTP': ['SSH-2.0-OpenSSH_9.2\r\n', ConnectionFailed],
  'a body that breaks off': [`${HEAD}content-length: 900\r\n\r\n{"response":`, ConnectionFailed],
  'no JSON': [`${HEAD}content-length: 9\r\n\r\n{"a": 1,]`, AnswerBroken],
  'no UTF-8': [Buffer.concat([Buffer.from(`${HEAD}content-length: 4\r\n\r\n"`), Buffer.of(0xff, 0xfe), Buffer.from('"')]), AnswerBroken],
  'wrong types': [`${HEAD}content-length: 15\r\n\r\n{"response": 7}`, AnswerBroken],
  'nothing at all': ['', ConnectionFailed],
  'an empty body': [`${HEAD}content-length: 0\r\n\r\n`, AnswerBroken],
  'gzip that is none': [`${HEAD}content-encoding: gzip\r\ncontent-length: 4\r\n\r\nabcd`, ConnectionFailed],
}
for (const [name, [answer, Kind]] of Object.entries(hostile)) {
  test(`a server that sends ${name} is an error of ours, and never an answer`, async (context) => {
    const { client } = await raw(context, answer)
    await assert.rejects(client.inference(ASKED), Kind)
  })
}

test('what is no UTF-8 is not made into some text', async () => {
  const whole = Buffer.from(JSON.stringify(WHOLE).replace('three', 'thr\u00ffe'), 'latin1')
  const client = new AIInferenceClient({ apiKey: KEY, baseUrl: 'http://127.0.0.1', fetch: async () => new Response(whole) })
  await assert.rejects(client.inference(ASKED), /not UTF-8/)
})

test('headers without an end are given up', async (context) => {
  const { client } = await raw(context, (socket) => pour(socket, HEAD, 'x-more: and more\r\n'.repeat(4096)))
  await assert.rejects(client.models(), ConnectionFailed)
})

test('a body without an end is given up before it fills the memory', async (context) => {
  const before = process.memoryUsage().arrayBuffers
  const { client } = await raw(context, (socket) => pour(socket, `${HEAD}\r\n"`, 'a'.repeat(1 << 20)))
  await assert.rejects(client.models(), (error) => error instanceof AnswerBroken && /more than/.test(error.message))
  assert.ok(process.memoryUsage().arrayBuffers - before < 200e6)
})

test('an error body that is too large is reported by its status', async (context) => {
  const head = 'HTTP/1.1 418 Teapot\r\ncontent-type: application/json\r\n\r\n{"error": {"message": "'
  const { client } = await raw(context, (socket) => pour(socket, head, 'a'.repeat(1 << 16)))
  await assert.rejects(client.models(), { name: 'BadRequest', status: 418 })
})

/** Write endlessly, as fast as the client reads. */
function pour(socket, head, part) {
  socket.write(head)
  const more = () => {
    while (!socket.destroyed && socket.write(part));
  }
  socket.on('drain', more)
  more()
}
