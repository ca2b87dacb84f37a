import assert from 'node:assert/strict'
import { test } from 'node:test'
import { AIInferenceClient, Internal, login, NotAuthenticated, SessionEnded } from '../src/index.js'
import { END, events, failure, json, KEY, scripted, WHOLE, words } from './servers.js'

const ASKED = { prompt: 'hi', model: 'echo' }
const USER = { id: 'u', username: 'ann', email: 'a@b.c', role: 'user', tier: 'free' }
const LOGGED_IN = { token_type: 'Bearer', expires_in: 600, step: 'done', user: USER }

/**
 * A platform with one session. `age` expires its access token; each session token works once. Requests with an expired token are
 * answered only when `together` of them have arrived.
 */
async function withSession(context, ...answers) {
  const state = { number: 1, renewals: 0, together: 1, refusal: null, hold: Promise.resolve(), served: 0, late: null }
  const refused = []
  const onRenewal = async (response, { body }) => {
    state.renewals += 1
    await state.hold
    if (state.refusal !== null) return state.refusal(response)
    if (body.session_token !== `session-${state.number - 1}`) return failure(401, 'not_authenticated')(response)
    json({ ...LOGGED_IN, access_token: `access-${state.number}`, session_token: `session-${state.number}` })(response)
  }
  const reply = (response, one) => {
    if (one.url === '/api/auth/refresh') return onRenewal(response, one)
    if (one.headers.authorization === `Bearer access-${state.number}`) {
      state.served += 1
      return (answers[Math.min(state.served, answers.length) - 1] ?? json(WHOLE))(response)
    }
    if (one.body?.prompt === 'late') {
      state.late = () => failure(401, 'not_authenticated')(response)
      return
    }
    refused.push(response)
    if (refused.length >= state.together) for (const each of refused.splice(0)) failure(401, 'not_authenticated')(each)
  }
  const { baseUrl, seen, withdrawn } = await scripted(context, reply)
  const client = new AIInferenceClient({ session: { accessToken: 'access-1', sessionToken: 'session-1' }, baseUrl })
  const age = () => {
    state.number += 1
  }
  return { client, state, age, seen, withdrawn }
}

test('a login is a session', async (context) => {
  const { baseUrl, seen } = await scripted(context, json({ ...LOGGED_IN, access_token: 'a', session_token: 's' }))
  const session = await login({ baseUrl, username: 'ann', password: 'pw', code: '123456' })
  assert.deepEqual(session, { accessToken: 'a', sessionToken: 's' })
  assert.deepEqual([seen[0].url, seen[0].body], ['/api/auth/login', { username: 'ann', password: 'pw', code: '123456' }])
  assert.equal(seen[0].headers.authorization, undefined)
})

test('a wrong password is reported immediately and sent once', async (context) => {
  const { baseUrl, seen } = await scripted(context, failure(401, 'not_authenticated'))
  await assert.rejects(login({ baseUrl, email: 'a@b.c', password: 'pw' }), (error) => error.constructor === NotAuthenticated)
  await assert.rejects(login({ baseUrl, name: 'ann', password: 'pw' }), TypeError)
  assert.equal(seen.length, 1)
})

test('of all calls that find the access token too old, one renews it', async (context) => {
  const { client, state, age, withdrawn } = await withSession(context)
  await client.inference(ASKED)
  age()
  state.together = 20
  const answers = await Promise.all(Array.from({ length: 20 }, () => client.inference(ASKED)))
  assert.ok(answers.every(({ text }) => text === 'three small words'))
  assert.equal(state.renewals, 1)
  assert.deepEqual(client.session, { accessToken: 'access-2', sessionToken: 'session-2' })
  state.together = 1
  age()
  await client.inference(ASKED)
  assert.equal(state.renewals, 2)
  assert.deepEqual(withdrawn, [])
})

test('a late refusal of an old access token uses the token that is already there', async (context) => {
  const { client, state, age } = await withSession(context)
  age()
  const late = client.inference({ ...ASKED, prompt: 'late' })
  while (state.late === null) await new Promise((resolve) => setImmediate(resolve))
  await client.inference(ASKED)
  state.late()
  assert.equal((await late).text, 'three small words')
  assert.equal(state.renewals, 1)
})

test('a request goes again under its own key, so that the platform has seen one', async (context) => {
  const { client, age, seen } = await withSession(context)
  age()
  await client.inference(ASKED)
  const [first, , second] = seen
  assert.equal(first.headers['idempotency-key'], second.headers['idempotency-key'])
  assert.equal(second.headers.authorization, 'Bearer access-2')
})

test('a session that has ended says so, and nothing more is sent', async (context) => {
  const { client, state, age, seen, withdrawn } = await withSession(context)
  age()
  state.refusal = failure(401, 'not_authenticated')
  state.together = 4
  const outcomes = await Promise.allSettled(Array.from({ length: 4 }, () => client.inference(ASKED)))
  for (const { reason } of outcomes) {
    assert.ok(reason instanceof SessionEnded && reason instanceof NotAuthenticated)
    assert.deepEqual([reason.code, reason.status, reason.requestId, reason.retryable], ['session_ended', 401, 'r-1', false])
    assert.match(reason.hint, /log in again/)
  }
  const before = seen.length
  await assert.rejects(client.stream(ASKED).finish(), SessionEnded)
  await assert.rejects(client.models(), SessionEnded)
  assert.equal(state.renewals, 1)
  assert.equal(seen.length, before)
  assert.deepEqual(withdrawn, [])
})

test('a platform that is down for a moment ends no session', async (context) => {
  const { client, state, age } = await withSession(context)
  age()
  state.refusal = failure(500, 'internal')
  await assert.rejects(client.inference(ASKED), Internal)
  state.refusal = null
  assert.equal((await client.inference(ASKED)).text, 'three small words')
})

test('a new token that is refused is not renewed again', async (context) => {
  const { client, state, age } = await withSession(context)
  age()
  state.refusal = json({ ...LOGGED_IN, access_token: 'never good', session_token: 'session-2' })
  await assert.rejects(client.inference(ASKED), (error) => error.constructor === NotAuthenticated)
  assert.equal(state.renewals, 1)
})

test('a broken stream resumes with another token', async (context) => {
  const said = words('one two three')
  const { client, state, age, seen } = await withSession(context, events(said.slice(0, 1), 'break'), events([...said.slice(1), ...END]))
  age()
  const stream = client.stream(ASKED)
  const pieces = []
  for await (const piece of stream) {
    pieces.push(piece)
    if (pieces.length === 1) age()
  }
  assert.deepEqual(pieces, ['one', ' two', ' three'])
  assert.equal(state.renewals, 2)
  assert.equal(new Set(seen.map(({ headers }) => headers['idempotency-key']).filter(Boolean)).size, 1)
})

test('who leaves while the token is renewed takes it from nobody', async (context) => {
  const { client, state, age } = await withSession(context)
  age()
  let go
  state.hold = new Promise((resolve) => {
    go = resolve
  })
  const control = new AbortController()
  const leaver = client.inference({ ...ASKED, signal: control.signal })
  const stayer = client.inference(ASKED)
  while (state.renewals === 0) await new Promise((resolve) => setImmediate(resolve))
  control.abort(new Error('enough'))
  await assert.rejects(leaver, /enough/)
  go()
  assert.equal((await stayer).text, 'three small words')
  assert.equal(state.renewals, 1)
})

test('an access token without its session gets a hint, and a key does not', async (context) => {
  const { baseUrl } = await scripted(context, failure(401, 'not_authenticated'))
  await assert.rejects(new AIInferenceClient({ apiKey: 'eyJ.a.b', baseUrl }).models(), ({ hint }) => /pass the session/.test(hint))
  await assert.rejects(new AIInferenceClient({ apiKey: KEY, baseUrl }).models(), ({ hint }) => hint === 'do better')
})

test('a client has a key or a session', () => {
  const baseUrl = 'http://127.0.0.1:1'
  const session = { accessToken: 'a', sessionToken: 's' }
  assert.equal(new AIInferenceClient({ apiKey: KEY, baseUrl }).session, null)
  assert.throws(() => new AIInferenceClient({ apiKey: KEY, session, baseUrl }), /not both/)
  for (const wrong of [
    null,
    {},
    { accessToken: 'a' },
    { accessToken: 'a b', sessionToken: 's' },
    { access_token: 'a', session_token: 's' },
  ]) {
    assert.throws(() => new AIInferenceClient({ session: wrong, baseUrl }), TypeError)
  }
})
