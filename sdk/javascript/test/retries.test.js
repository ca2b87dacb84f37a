import assert from 'node:assert/strict'
import { test } from 'node:test'
import { AnswerBroken, ConnectionFailed, fromAnswer } from '../src/errors.js'
import { canResumeAfter, pauseMs } from '../src/retries.js'

const of = (code, status, after = null) => fromAnswer(status, { error: { code } }, (name) => (name === 'retry-after-ms' ? after : null))
const attempts = (changed = {}) => ({ failed: 0, maxRetries: 2, remainingMs: 60_000, random: () => 1, ...changed })

test('each pause is twice the one before, up to 8 s, and a half of it is drawn', () => {
  const pauses = [0, 1, 2, 3, 4, 5, 100].map((failed) => pauseMs(of('draining', 503), attempts({ failed, maxRetries: 200 })))
  assert.deepEqual(pauses, [500, 1000, 2000, 4000, 8000, 8000, 8000])
  assert.equal(pauseMs(of('draining', 503), attempts({ random: () => 0 })), 250)
})

const cases = [
  ['a connection that failed', new ConnectionFailed('', { code: 'connection_failed', retryable: true }), {}, 500],
  ['a proxy that has nobody behind it', fromAnswer(502, null), {}, 500],
  ['as often as is said', of('overloaded', 503), { failed: 1 }, 1000],
  ['not more often', of('overloaded', 503), { failed: 2 }, null],
  ['not at all', of('overloaded', 503), { maxRetries: 0 }, null],
  ['what the caller has to change', of('bad_request', 400), {}, null],
  ['money', of('budget_exhausted', 402), {}, null],
  ['another request under the same key', of('idempotency_conflict', 409), {}, null],
  ['a request that runs is waited for, however long', of('in_progress', 409), { failed: 9 }, 8000],
  ['no answer of a gateway', new AnswerBroken('', { code: 'answer_broken' }), {}, null],
  ['not before the gateway said', of('rate_limited', 429, '3000'), {}, 3050],
  ['not at once, whatever the gateway said', of('rate_limited', 429, '0'), {}, 500],
  ['not when the time would be over', of('rate_limited', 429, '3000'), { remainingMs: 3000 }, null],
  ['nor with none left', of('draining', 503), { remainingMs: -1 }, null],
]
for (const [name, error, changed, expected] of cases) {
  test(`sent again or not: ${name}`, () => assert.equal(pauseMs(error, attempts(changed)), expected))
}

test('after text, a stream resumes only where another gateway has the rest', () => {
  for (const code of ['link_lost', 'draining']) assert.ok(canResumeAfter(of(code, null)))
  for (const code of ['worker_lost', 'model_crashed', 'deadline_exceeded', 'internal']) assert.ok(!canResumeAfter(of(code, null)))
})
