import assert from 'node:assert/strict'
import { test } from 'node:test'
import { AnswerStream } from '../src/answer_stream.js'
import { Key } from '../src/bearers.js'
import { Call } from '../src/calls.js'
import { Gateway } from '../src/gateway.js'
import { AnswerBroken, AnswerGone, ConnectionFailed, DeadlineExceeded, Internal, RateLimited, Unavailable } from '../src/index.js'
import { ANSWER, END, event, events, failure, json, KEY, raw, scripted, silence, words } from './servers.js'

const ASKED = { prompt: 'say it', model: 'echo' }
const HEAD = 'HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n'
const TEXT = 'one two three four'
const ALL = words(TEXT)

async function piecesOf(stream) {
  const pieces = []
  for await (const piece of stream) pieces.push(piece)
  return pieces
}

/** `tell` wraps a reply; `once` resolves when the reply's connection is closed. */
function closings() {
  let close
  const once = new Promise((resolve) => {
    close = resolve
  })
  const tell = (reply) => (response, one) => {
    response.on('close', close)
    reply(response, one)
  }
  return { once, tell }
}

const keysOf = (seen) => new Set(seen.map(({ headers }) => headers['idempotency-key']))
const lastIds = (seen) => seen.map(({ headers }) => headers['last-event-id']?.split('-')[1])

test('yields each piece, then the whole answer', async (context) => {
  const { client, seen, withdrawn } = await scripted(context, events([': queued, 2 before you\n\n', ...ALL, ...END]))
  const stream = client.stream(ASKED)
  assert.deepEqual([stream.text, stream.answer], ['', null])
  assert.deepEqual(await piecesOf(stream), ['one', ' two', ' three', ' four'])
  assert.equal(stream.text, TEXT)
  assert.deepEqual([stream.answer.text, stream.answer.usage.totalTokens, stream.answer.requestId], [TEXT, 5, ANSWER.request_id])
  assert.deepEqual([seen[0].url, seen[0].body], ['/api/inference', { ...ASKED, stream: true }])
  stream.abort()
  assert.deepEqual(withdrawn, [])
})

test('thoughts come apart from the text', async (context) => {
  const thoughts = [event({ text: '', reasoning: 'Let me' }, 1), event({ text: '', reasoning: ' see.' }, 2)]
  const { client, withdrawn } = await scripted(context, events([...thoughts, event({ text: '42' }, 3), ...END]))
  const stream = client.stream(ASKED)
  const pieces = await piecesOf(stream.pieces())
  assert.deepEqual(
    pieces.map(({ text, reasoning }) => [text, reasoning]),
    [
      ['', 'Let me'],
      ['', ' see.'],
      ['42', ''],
    ],
  )
  assert.deepEqual([stream.reasoning, stream.answer.reasoning, stream.answer.text], ['Let me see.', 'Let me see.', '42'])
  assert.deepEqual(withdrawn, [])
})

test('leaving the pieces early stops the generation', async (context) => {
  const { client } = await scripted(context, events(ALL, 'hang'))
  const stream = client.stream(ASKED)
  for await (const piece of stream.pieces()) {
    assert.equal(piece.text, 'one')
    break
  }
  assert.equal(stream.answer, null)
  assert.deepEqual(await piecesOf(stream), [])
})

test('the end alone, for who wants no pieces', async (context) => {
  const { client } = await scripted(context, events([...ALL, ...END]))
  assert.equal((await client.stream(ASKED).finish()).text, TEXT)
})

test('a stream that nobody reads asks for nothing', async (context) => {
  const { client, seen } = await scripted(context, events([...ALL, ...END]))
  const stream = client.stream(ASKED)
  stream.abort()
  assert.deepEqual(await piecesOf(stream), [])
  await assert.rejects(stream.finish(), { name: 'AbortError' })
  assert.equal(seen.length, 0)
})

test('the connection of a stream that was read to its end is used again', async (context) => {
  const { client, sockets } = await scripted(context, events([...ALL, ...END]))
  for (let time = 0; time < 6; time++) await client.stream(ASKED).finish()
  // A second connection is opened if the next call starts before the first connection is free.
  assert.ok(sockets.size <= 2, `${sockets.size}`)
})

test('a server that says its end and then nothing more holds nobody up', async (context) => {
  const { client } = await scripted(context, events([...ALL, ...END], 'hang'))
  // If the client ignored the end of the answer, this would be a DeadlineExceeded.
  assert.equal((await client.stream({ ...ASKED, timeoutMs: 5000 }).finish()).text, TEXT)
})

test('whatever comes behind the answer changes nothing', async (context) => {
  for (const more of [': \u00ff\n\n', 'data: {\n\n', event({ text: 'more' }), event({ error: { code: 'internal' } })]) {
    const { client } = await raw(context, Buffer.from(HEAD + [...ALL, ...END].join('') + more, 'latin1'))
    const stream = client.stream(ASKED)
    assert.deepEqual(await piecesOf(stream), ['one', ' two', ' three', ' four'])
    assert.equal(stream.answer.text, TEXT)
  }
})

// --- broken connections ----------------------------------------------------------------------------------------------------------------

test('a stream that breaks at any byte resumes where it stopped', async (context) => {
  const sent = [...ALL, ...END].join('')
  const ends = [...ALL, ...END].map((_, index, all) => all.slice(0, index + 1).join('').length)
  for (let at = 0; at < ends[ALL.length]; at += 7) {
    const had = ends.filter((end) => end <= at).length
    const { client, seen } = await scripted(context, events([sent.slice(0, at)], 'break'), (response, one) => {
      assert.equal(one.headers['last-event-id'], had === 0 ? undefined : /id: (\S+)/.exec(ALL[had - 1])[1])
      events([...ALL.slice(had), ...END])(response, one)
    })
    assert.equal((await piecesOf(client.stream(ASKED))).join(''), TEXT, `broken at ${at}`)
    assert.deepEqual([seen.length, keysOf(seen).size], [2, 1])
  }
})

test('a stream that ends too early counts as broken', async (context) => {
  const { client, seen } = await scripted(context, events(ALL.slice(0, 2)), events([...ALL.slice(2), ...END]))
  assert.deepEqual(await piecesOf(client.stream(ASKED)), ['one', ' two', ' three', ' four'])
  assert.deepEqual(lastIds(seen), [undefined, '2'])
})

test('a gateway that starts over repeats no text', async (context) => {
  const { client } = await scripted(context, events(ALL.slice(0, 3), 'break'), events([...ALL, ...END]))
  const stream = client.stream(ASKED)
  assert.deepEqual(await piecesOf(stream), ['one', ' two', ' three', ' four'])
  assert.equal(stream.answer.text, TEXT)
})

test('a connection that breaks after every word is reopened as long as words come', async (context) => {
  const { client, seen } = await scripted(context, ...ALL.map((word) => events([word], 'break')), events(END))
  assert.deepEqual(await piecesOf(client.stream(ASKED)), ['one', ' two', ' three', ' four'])
  assert.deepEqual(lastIds(seen), [undefined, '1', '2', '3', '4'])
})

test('and given up where none come', async (context) => {
  const { client, seen, onceWithdrawn } = await scripted(context, events(ALL.slice(0, 1), 'break'), events([], 'break'))
  const stream = client.stream(ASKED)
  await assert.rejects(piecesOf(stream), ConnectionFailed)
  await assert.rejects(stream.finish(), ConnectionFailed)
  assert.equal(stream.text, 'one')
  assert.equal(seen.length, 3, 'two more tries behind the word')
  await onceWithdrawn()
})

test('also where the connections end well', async (context) => {
  const { client, seen } = await scripted(context, events([]))
  await assert.rejects(client.stream(ASKED).finish(), /ended before the answer was complete/)
  assert.equal(seen.length, 3)
})

test('text without ids cannot resume, and is not repeated', async (context) => {
  const { client, seen } = await scripted(context, events([event({ text: 'one' })], 'break'), events([...ALL, ...END]))
  await assert.rejects(piecesOf(client.stream(ASKED)), ConnectionFailed)
  assert.equal(seen.length, 1)
})

test('an id that is none of a gateway’s is not sent back', async (context) => {
  for (const id of ['x-1\u00e4', 'x y-1', '7', `${'x'.repeat(300)}-1`]) {
    const { client, seen } = await scripted(context, events([event({ text: 'one' }, id)], 'break'), events([...ALL, ...END]))
    await assert.rejects(piecesOf(client.stream(ASKED)), ConnectionFailed)
    assert.equal(seen.length, 1)
  }
})

test('a gateway that goes hands the rest on to another', async (context) => {
  const { client, seen } = await scripted(
    context,
    events([...ALL.slice(0, 2), event({ error: { code: 'draining', message: 'this gateway had to stop' } })]),
    failure(503, 'unavailable', { 'retry-after-ms': '1' }),
    failure(409, 'in_progress', { 'retry-after-ms': '1' }),
    events([...ALL.slice(2), ...END]),
  )
  assert.deepEqual(await piecesOf(client.stream(ASKED)), ['one', ' two', ' three', ' four'])
  assert.deepEqual(lastIds(seen), [undefined, '2', '2', '2'])
})

test('an answer that is gone raises an error and is not requested again', async (context) => {
  const { client, seen } = await scripted(context, events(ALL.slice(0, 2), 'break'), failure(410, 'answer_gone'))
  await assert.rejects(piecesOf(client.stream(ASKED)), AnswerGone)
  assert.equal(seen.length, 2)
})

test('a gateway that says nothing any more is left for a new connection', async (context) => {
  const { baseUrl, seen } = await scripted(context, silence, events(ALL.slice(0, 2), 'hang'), events([...ALL.slice(2), ...END]))
  const call = new Call(new Gateway(baseUrl, new Key(KEY), fetch), { signal: undefined, timeoutMs: 30_000, maxRetries: 2, once: true })
  const stream = new AnswerStream(call, JSON.stringify({ ...ASKED, stream: true }), { silenceMs: 500 })
  assert.deepEqual(await piecesOf(stream), ['one', ' two', ' three', ' four'])
  assert.deepEqual(lastIds(seen), [undefined, undefined, '2'])
})

test('a reader who takes his time is no silence', async (context) => {
  const { baseUrl, seen } = await scripted(context, (response) => {
    events(ALL.slice(0, 2), 'hang')(response)
    setTimeout(() => response.end([...ALL.slice(2), ...END].join('')), 20)
  })
  const call = new Call(new Gateway(baseUrl, new Key(KEY), fetch), { signal: undefined, timeoutMs: 30_000, maxRetries: 2, once: true })
  const stream = new AnswerStream(call, JSON.stringify({ ...ASKED, stream: true }), { silenceMs: 500 })
  for await (const _ of stream) await new Promise((resolve) => setTimeout(resolve, 600))
  assert.equal(stream.answer.text, TEXT)
  assert.equal(seen.length, 1)
})

// --- errors ----------------------------------------------------------------------------------------------------------------------------

test('before the first text what may pass is asked again, as an answer or as an event', async (context) => {
  const full = event({ error: { code: 'overloaded', message: 'full' } })
  const { client, seen } = await scripted(
    context,
    failure(429, 'rate_limited', { 'retry-after-ms': '1' }),
    events([full]),
    events([...ALL, ...END]),
  )
  assert.equal((await client.stream(ASKED).finish()).text, TEXT)
  assert.deepEqual([seen.length, keysOf(seen).size], [3, 1])
})

test('behind text an error is how the answer ended, and is not asked for again', async (context) => {
  const lost = event({ error: { code: 'worker_lost', message: 'the worker was lost', hint: 'ask again', request_id: 'r-2' } })
  const { client, seen, withdrawn } = await scripted(context, events([...ALL.slice(0, 2), lost]))
  const stream = client.stream(ASKED)
  await assert.rejects(piecesOf(stream), (error) => {
    assert.deepEqual(
      [error instanceof Unavailable, error.code, error.hint, error.status, error.requestId],
      [true, 'worker_lost', 'ask again', null, 'r-2'],
    )
    return true
  })
  assert.deepEqual([stream.text, stream.answer, seen.length, withdrawn.length], ['one two', null, 1, 0])
})

test('an error code unknown to this version is raised, too', async (context) => {
  const { client } = await scripted(context, events([event({ error: { code: 'of_tomorrow', message: 'what is this' } })]))
  await assert.rejects(client.stream(ASKED).finish(), (error) => error instanceof Internal && error.code === 'of_tomorrow')
})

test('a limit that outlasts the call is raised immediately', async (context) => {
  const { client, seen } = await scripted(context, failure(429, 'rate_limited', { 'retry-after': '600' }))
  await assert.rejects(client.stream({ ...ASKED, timeoutMs: 2000 }).finish(), RateLimited)
  assert.equal(seen.length, 1)
})

// --- leaving early ---------------------------------------------------------------------------------------------------------------------

test('aborted in the middle a loop ends, and the model is free', async (context) => {
  const closing = closings()
  const { client, seen, withdrawn, onceWithdrawn } = await scripted(context, closing.tell(events(ALL, 'hang')))
  const stream = client.stream(ASKED)
  const pieces = []
  for await (const piece of stream) {
    pieces.push(piece)
    if (pieces.length === 2) stream.abort()
  }
  assert.deepEqual(pieces, ['one', ' two'])
  assert.equal(stream.answer, null)
  await assert.rejects(stream.finish(), { name: 'AbortError' })
  await closing.once
  await onceWithdrawn()
  assert.deepEqual(withdrawn, [seen[0].headers['idempotency-key']])
})

test('aborted while it waits a loop ends', async (context) => {
  const { client, onceWithdrawn } = await scripted(context, events(ALL.slice(0, 1), 'hang'))
  const stream = client.stream(ASKED)
  const pieces = []
  for await (const piece of stream) {
    pieces.push(piece)
    // By then, the loop waits for the next piece.
    setTimeout(() => stream.abort(), 10)
  }
  assert.deepEqual(pieces, ['one'])
  await onceWithdrawn()
})

test('a loop that is left frees the model', async (context) => {
  const closing = closings()
  const { client, seen, withdrawn, onceWithdrawn } = await scripted(context, closing.tell(events(ALL, 'hang')))
  const stream = client.stream(ASKED)
  for await (const piece of stream) if (piece === ' two') break
  await closing.once
  await onceWithdrawn()
  assert.deepEqual(withdrawn, [seen[0].headers['idempotency-key']])
  assert.equal(stream.text, 'one two')
})

test("a caller's signal ends a stream with its reason", async (context) => {
  const control = new AbortController()
  const { client, onceWithdrawn } = await scripted(context, events(ALL, 'hang'))
  const stream = client.stream({ ...ASKED, signal: control.signal })
  const pieces = []
  await assert.rejects(async () => {
    for await (const piece of stream) if (pieces.push(piece) === 2) control.abort(new Error('enough'))
  }, /enough/)
  assert.deepEqual(pieces, ['one', ' two'])
  await onceWithdrawn()
})

test('a stream ends when its time is over', async (context) => {
  const { client, onceWithdrawn } = await scripted(context, events(ALL.slice(0, 1), 'hang'))
  const stream = client.stream({ ...ASKED, timeoutMs: 500 })
  await assert.rejects(piecesOf(stream), DeadlineExceeded)
  assert.equal(stream.text, 'one')
  await onceWithdrawn()
})

// --- hostile servers -------------------------------------------------------------------------------------------------------------------

test('a connection on which nonsense came is closed', async (context) => {
  const closing = closings()
  const { client } = await scripted(context, closing.tell(events(['data: nonsense\n\n'], 'hang')))
  await assert.rejects(client.stream(ASKED).finish(), AnswerBroken)
  await closing.once
})

const hostile = {
  'no events': 'HTTP/1.1 200 OK\r\ncontent-type: text/html\r\ncontent-length: 6\r\n\r\n<html>',
  'no content type': 'HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n',
  'no JSON': `${HEAD}data: {"text": \n\n`,
  'no object': `${HEAD}data: [1]\n\n`,
  null: `${HEAD}data: null\n\n`,
  'a number for text': `${HEAD}data: {"text": 7}\n\n`,
  'an end without its counts': `${HEAD}data: {"finish_reason": "stop"}\n\n`,
  'no UTF-8': Buffer.concat([Buffer.from(`${HEAD}data: {"text": "`), Buffer.of(0xc3, 0x28), Buffer.from('"}\n\n')]),
}
for (const [name, answer] of Object.entries(hostile)) {
  test(`a stream of ${name} is an error of ours, and no text`, async (context) => {
    const { client } = await raw(context, answer)
    const stream = client.stream(ASKED)
    await assert.rejects(piecesOf(stream), AnswerBroken)
    assert.equal(stream.text, '')
  })
}

test('a line without an end is given up', async (context) => {
  const part = 'a'.repeat(1 << 16)
  const { client } = await raw(context, (socket) => {
    socket.write(`${HEAD}data: `)
    const more = () => {
      while (!socket.destroyed && socket.write(part));
    }
    socket.on('drain', more)
    more()
  })
  await assert.rejects(client.stream(ASKED).finish(), (error) => error instanceof AnswerBroken && /no end/.test(error.message))
})

test('an event of a newer gateway is passed over', async (context) => {
  const { client } = await scripted(context, events([event({ thinking: 'hm' }), ...ALL, ...END]))
  assert.equal((await client.stream(ASKED).finish()).text, TEXT)
})

test('an end that says that it is one before the answer did is none', async (context) => {
  const { client, seen } = await scripted(context, events([...ALL, 'data: [DONE]\n\n']), events(END))
  assert.equal((await client.stream(ASKED).finish()).text, TEXT)
  assert.equal(seen.length, 2)
})

test('an answer that is no stream is refused', async (context) => {
  const { client } = await scripted(context, json({ ...ANSWER, response: TEXT }))
  await assert.rejects(client.stream(ASKED).finish(), /is application\/json, not a stream/)
})
