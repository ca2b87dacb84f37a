import assert from 'node:assert/strict'
import { test } from 'node:test'
import { inspect } from 'node:util'
import { AIInferenceClient } from '../src/index.js'
import { addressOf, embeddingBody, ensureOptions, inferenceBody } from '../src/requests.js'

const GOOD = { apiKey: 'aip_live_secret', baseUrl: 'https://ai.example.org' }

test('what is asked for is sent, and what is left out is not', () => {
  const signal = AbortSignal.abort()
  const request = { prompt: 'hi', model: 'llama3', maxTokens: 500, seed: undefined, stop: ['a'], signal, timeoutMs: 5 }
  assert.deepEqual(JSON.parse(inferenceBody(request, false)), { prompt: 'hi', model: 'llama3', maxTokens: 500, stop: ['a'] })
  assert.equal(JSON.parse(inferenceBody(request, true)).stream, true)
  assert.deepEqual(JSON.parse(embeddingBody({ input: ['a'], dimensions: 8 })), { input: ['a'], dimensions: 8, encoding_format: 'float' })
})

test('an option that there is not is refused with those that there are', () => {
  assert.throws(() => inferenceBody({ prompt: 'hi', max_tokens: 5 }, false), /unknown option "max_tokens"; use prompt, .*maxTokens/)
  assert.throws(() => inferenceBody({ prompt: 'hi', stream: true }, false), TypeError)
  assert.throws(() => embeddingBody({ prompt: 'hi' }), /unknown option "prompt"; use input/)
  assert.throws(() => ensureOptions({ model: 'x' }), /unknown option "model"; use signal, timeoutMs/)
  for (const said of ['hi', null, undefined]) assert.throws(() => inferenceBody(said, false), /a request is an object/)
})

test('an address is taken as people write it', () => {
  assert.equal(addressOf('http://127.0.0.1:3000/'), 'http://127.0.0.1:3000')
  assert.equal(addressOf(new URL('https://example.org/ai/')), 'https://example.org/ai')
  for (const bad of [undefined, '', 'ai.example.org', 'ftp://x', 'https://me:pw@x.org', 'https://x.org/?a=1', 'https://x.org/#a']) {
    assert.throws(() => addressOf(bad), /baseUrl must/, `${bad}`)
  }
})

test('a client that cannot work is not made', () => {
  for (const apiKey of [undefined, '', 'two words', 'new\nline', 'ключ', 7]) {
    assert.throws(() => new AIInferenceClient({ ...GOOD, apiKey }), /apiKey must be/)
  }
  for (const timeoutMs of [0, -1, Number.NaN, Number.POSITIVE_INFINITY, 2 ** 31, '5']) {
    assert.throws(() => new AIInferenceClient({ ...GOOD, timeoutMs }), /timeoutMs must be/)
    assert.throws(() => new AIInferenceClient(GOOD).stream({ prompt: 'hi', timeoutMs }), /timeoutMs must be/)
  }
  for (const maxRetries of [-1, 0.5, '2']) assert.throws(() => new AIInferenceClient({ ...GOOD, maxRetries }), /maxRetries must be/)
})

test('a key is shown by nothing', () => {
  const client = new AIInferenceClient(GOOD)
  assert.doesNotMatch(inspect(client, { depth: 9, showHidden: true }) + JSON.stringify(client), /secret/)
  assert.throws(
    () => new AIInferenceClient({ ...GOOD, apiKey: 'secret key' }),
    (error) => !/secret/.test(inspect(error)),
  )
})
