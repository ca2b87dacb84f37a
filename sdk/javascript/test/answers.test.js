import assert from 'node:assert/strict'
import { test } from 'node:test'
import * as answers from '../src/answers.js'
import { AnswerBroken } from '../src/errors.js'
import { WHOLE } from './servers.js'

const QUOTA = {
  user_id: 'u',
  tier: 'free',
  limit_per_hour: 100,
  used_this_hour: 1,
  remaining: 99,
  resets_in_seconds: 36.5,
  limits: [{ scope: 'user', kind: 'requests_per_hour', limit: 100, remaining: 99, resets_in_seconds: 36.5 }],
}
const USAGE = {
  user_id: 'u',
  request_count: 3,
  tokens_used: 30,
  days: [{ date: '2026-01-31', api_key_id: null, request_count: 3, tokens_used: 30 }],
}
const VECTORS = { data: [{ embedding: [0.5, -1], index: 0 }], model: 'm', usage: { prompt_tokens: 2, total_tokens: 2 } }
const MODELS = {
  data: [
    { id: 'echo', created: 1 },
    { id: 'e5', only_embeds: true },
  ],
}

test('what the gateway says, in the words of JavaScript', () => {
  assert.deepEqual(answers.readAnswer(WHOLE), {
    text: 'three small words',
    toolCalls: [],
    logprobs: [],
    reasoning: '',
    message: { role: 'assistant', content: 'three small words' },
    model: 'echo',
    usage: { promptTokens: 2, completionTokens: 3, totalTokens: 5, reasoningTokens: 0 },
    finishReason: 'stop',
    requestId: WHOLE.request_id,
    responseTimeMs: 12,
  })
  assert.deepEqual(answers.readModels(MODELS), [
    { id: 'echo', onlyEmbeds: false },
    { id: 'e5', onlyEmbeds: true },
  ])
  assert.deepEqual(answers.readEmbeddings(VECTORS), { vectors: [[0.5, -1]], model: 'm', usage: { promptTokens: 2, totalTokens: 2 } })
  assert.deepEqual(answers.readUsage(USAGE), {
    userId: 'u',
    requestCount: 3,
    tokensUsed: 30,
    days: [{ date: '2026-01-31', apiKeyId: null, requestCount: 3, tokensUsed: 30 }],
  })
  const { limits, ...quota } = answers.readQuota(QUOTA)
  assert.deepEqual(quota, {
    userId: 'u',
    tier: 'free',
    limitPerHour: 100,
    usedThisHour: 1,
    remaining: 99,
    resetsInSeconds: 36.5,
    credits: null,
    budget: null,
    allowance: null,
  })
  assert.deepEqual(limits, [{ scope: 'user', kind: 'requests_per_hour', limit: 100, remaining: 99, resetsInSeconds: 36.5 }])
})

test('what a newer gateway says more is passed over', () => {
  assert.equal(answers.readAnswer({ ...WHOLE, of_tomorrow: {} }).text, WHOLE.response)
})

/** Yields copies with one value replaced, for every value and several replacements. */
function* spoiled(good) {
  for (const [name, value] of Object.entries(good)) {
    for (const bad of [undefined, null, typeof value === 'string' ? 7 : 'seven', [[]], { nothing: 1 }]) {
      if (name !== 'api_key_id' || bad !== null) yield { ...good, [name]: bad }
    }
    if (Array.isArray(value)) for (const inner of spoiled(value[0])) yield { ...good, [name]: [inner] }
    else if (typeof value === 'object') for (const inner of spoiled(value)) yield { ...good, [name]: inner }
  }
}

test('a missing value or one of another type is never returned', () => {
  const keyed = { ...USAGE, days: [{ ...USAGE.days[0], api_key_id: 'k' }] }
  const readers = [
    [answers.readAnswer, WHOLE],
    [answers.readUsage, keyed],
    [answers.readQuota, QUOTA],
  ]
  for (const [read, good] of readers) {
    const all = [null, 7, 'text', [], ...spoiled(good)]
    assert.ok(all.length > 30)
    for (const bad of all) assert.throws(() => read(bad), AnswerBroken, JSON.stringify(bad))
  }
  for (const bad of [null, {}, { data: {} }, { data: [null] }, { data: [{ id: 7 }] }]) {
    assert.throws(() => answers.readModels(bad), AnswerBroken)
  }
  for (const row of [null, { embedding: 'AAAA', index: 0 }, { embedding: [1, null], index: 0 }, { embedding: [1], index: 1 }]) {
    assert.throws(() => answers.readEmbeddings({ ...VECTORS, data: [row] }), AnswerBroken)
  }
})

test('what is no JSON says so', () => {
  for (const text of ['', '{', '<html>', 'NaN']) assert.throws(() => answers.readJson(text), /not JSON/)
})
