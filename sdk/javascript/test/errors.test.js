import assert from 'node:assert/strict'
import { test } from 'node:test'
import * as errors from '../src/errors.js'
import { fromAnswer, KINDS } from '../src/errors.js'

const told = (code, more = {}) => ({
  error: { message: 'what happened', code, hint: 'what helps', request_id: 'r-1', param: null, ...more },
})
const headers = (found) => (name) => found[name] ?? null

test('every code is an error of its class, with all that the gateway told', () => {
  for (const [code, [Kind, retryable]] of KINDS) {
    const error = fromAnswer(418, told(code))
    assert.equal(error.constructor, Kind)
    assert.ok(error instanceof errors.AimeshError && error instanceof Error)
    assert.deepEqual(
      [error.name, error.code, error.message, error.hint, error.status, error.requestId, error.param, error.retryable],
      [Kind.name, code, 'what happened', 'what helps', 418, 'r-1', null, retryable],
    )
  }
})

test('a code that this version does not know is the closest kind by its status, and keeps its code', () => {
  const cases = [
    [400, 'BadRequest', false],
    [401, 'NotAuthenticated', false],
    [402, 'BudgetExhausted', false],
    [403, 'NotAllowed', false],
    [404, 'NotFound', false],
    [409, 'Conflict', false],
    [410, 'AnswerGone', false],
    [413, 'TooLarge', false],
    [418, 'BadRequest', false],
    [429, 'RateLimited', true],
    [499, 'Cancelled', false],
    [500, 'Internal', false],
    [502, 'Unavailable', true],
    [503, 'Unavailable', true],
    [504, 'DeadlineExceeded', true],
    [599, 'Internal', false],
    [null, 'Internal', false],
  ]
  for (const [status, name, retryable] of cases) {
    const error = fromAnswer(status, told('of_tomorrow'))
    assert.deepEqual([error.name, error.code, error.retryable], [name, 'of_tomorrow', retryable], `${status}`)
  }
})

test('a response without an error object is reported by its status', () => {
  for (const body of [
    null,
    undefined,
    'text',
    7,
    [],
    {},
    { error: 'text' },
    { error: null },
    { error: { message: 7, code: {}, hint: [] } },
  ]) {
    const error = fromAnswer(503, body, headers({ 'x-request-id': 'r-9' }))
    assert.deepEqual([error.name, error.code, error.hint, error.requestId], ['Unavailable', 'unavailable', '', 'r-9'])
    assert.match(error.message, /status 503/)
  }
})

test('names that every object has are no codes', () => {
  for (const code of ['__proto__', 'constructor', 'toString']) assert.equal(fromAnswer(400, told(code)).constructor, errors.BadRequest)
})

test('when to come back', () => {
  const cases = [
    [{ 'retry-after': '2' }, 2000],
    [{ 'retry-after-ms': '1500', 'retry-after': '2' }, 1500],
    [{ 'retry-after': 'Wed, 21 Oct 2026 07:28:00 GMT' }, null],
    [{ 'retry-after': '-1' }, null],
    [{ 'retry-after': '1e9' }, null],
    [{ 'retry-after': '99999999999999999999' }, null],
    [{}, null],
  ]
  for (const [said, expected] of cases) assert.equal(fromAnswer(429, told('rate_limited'), headers(said)).retryAfterMs, expected)
})

test('where the gateway says that another try does not help, there is none', () => {
  assert.equal(fromAnswer(503, told('unavailable'), headers({ 'x-should-retry': 'false' })).retryable, false)
})
