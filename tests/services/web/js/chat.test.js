// The pure parts of the chat page: the conversation, its images, its code samples, and the parser of the event stream.

import assert from 'node:assert/strict'
import { test } from 'node:test'
import * as conversation from '../../../../services/web/static/js/conversation.js'
import { findProblem, MAX_BYTES, MAX_IMAGES } from '../../../../services/web/static/js/images.js'
import { toContent, toSamples } from '../../../../services/web/static/js/samples.js'
import { EventParser, MAX_EVENT_CHARACTERS } from '../../../../services/web/static/js/stream.js'

const texts = (chat) => chat.messages.map(({ role, text, state }) => [role, text, state])

test('a question is followed by an answer that grows', () => {
  let chat = conversation.addPrompt(conversation.EMPTY, 'Why?')
  chat = conversation.receive(chat, 'waiting', { message: 'The model is loading' })
  assert.equal(chat.messages[1].waiting, 'The model is loading')
  for (const text of ['Be', 'cause']) chat = conversation.receive(chat, 'chunk', { text })
  chat = conversation.end(conversation.receive(chat, 'usage', { prompt_tokens: 3, completion_tokens: 2 }), 'done')
  assert.deepEqual(texts(chat), [
    ['user', 'Why?', 'done'],
    ['assistant', 'Because', 'done'],
  ])
  assert.equal(chat.messages[1].waiting, '')
  assert.equal(chat.messages[1].usage.completion_tokens, 2)
})

test('thoughts are kept apart from the answer, and sent back with it', () => {
  let chat = conversation.addPrompt(conversation.EMPTY, 'Why?')
  for (const text of ['Let me', ' see.']) chat = conversation.receive(chat, 'thought', { text })
  chat = conversation.end(conversation.receive(chat, 'chunk', { text: 'Because' }), 'done')
  assert.deepEqual(conversation.toMessages(conversation.addPrompt(chat, 'And?')), [
    { role: 'user', content: 'Why?' },
    { role: 'assistant', content: 'Because', reasoning: 'Let me see.' },
    { role: 'user', content: 'And?' },
  ])
})

const PHOTO = { name: "my 'photo'.png", url: 'data:image/png;base64,aGk=', bytes: 2 }

test('images are sent with their question, as long as it is sent', () => {
  let chat = conversation.addPrompt(conversation.EMPTY, 'What?', [PHOTO])
  assert.deepEqual(conversation.toMessages(chat), [{ role: 'user', content: 'What?', images: ['aGk='] }])
  assert.deepEqual(conversation.toPictures(chat), [PHOTO])
  chat = conversation.receive(chat, 'problem', { code: 'x', message: 'y' })
  assert.deepEqual(conversation.toPictures(chat), [])
})

test('images have a known format, and are bounded together', () => {
  const file = { name: 'a.png', type: 'image/png', size: MAX_BYTES - 2 }
  assert.equal(findProblem(file, [PHOTO]), '')
  assert.match(findProblem({ ...file, size: MAX_BYTES - 1 }, [PHOTO]), /^a\.png is too large/)
  assert.match(findProblem({ ...file, type: 'image/heic' }, []), /^a\.png is not a JPEG, PNG, WebP or GIF/)
  assert.equal(findProblem({ ...file, size: 1 }, Array(MAX_IMAGES - 1).fill(PHOTO)), '')
  assert.match(findProblem({ ...file, size: 1 }, Array(MAX_IMAGES).fill(PHOTO)), /at most 8 images/)
})

test('nothing is asked while an answer is written, and nothing blank', () => {
  const chat = conversation.addPrompt(conversation.EMPTY, 'one')
  assert.equal(conversation.addPrompt(chat, 'two'), chat)
  assert.equal(conversation.regenerate(chat), chat)
  assert.equal(conversation.addPrompt(conversation.EMPTY, ' \n'), conversation.EMPTY)
})

test('what comes after the end changes nothing, and neither does an unknown event', () => {
  const chat = conversation.addPrompt(conversation.EMPTY, 'one')
  assert.equal(conversation.receive(chat, 'new-kind', {}), chat)
  const stopped = conversation.end(chat, 'stopped')
  assert.equal(conversation.receive(stopped, 'chunk', { text: 'late' }), stopped)
  assert.equal(conversation.end(stopped, 'done'), stopped)
})

test('a problem keeps the text before it and is not overwritten by the end', () => {
  let chat = conversation.receive(conversation.addPrompt(conversation.EMPTY, 'q'), 'chunk', { text: 'half' })
  chat = conversation.end(conversation.receive(chat, 'problem', { code: 'worker_lost', message: 'gone', hint: 'again' }), 'done')
  assert.deepEqual(texts(chat)[1], ['assistant', 'half', 'failed'])
  assert.equal(chat.messages[1].problem.hint, 'again')
})

test('regenerating asks the same question again', () => {
  let chat = conversation.end(conversation.receive(conversation.addPrompt(conversation.EMPTY, 'q'), 'chunk', { text: 'a' }), 'done')
  chat = conversation.regenerate(chat)
  assert.deepEqual(texts(chat), [
    ['user', 'q', 'done'],
    ['assistant', '', 'writing'],
  ])
  assert.deepEqual(conversation.toMessages(chat), [{ role: 'user', content: 'q' }])
})

test('a question whose answer failed without a word is not sent again with the next', () => {
  let chat = conversation.receive(conversation.addPrompt(conversation.EMPTY, 'lost'), 'problem', { code: 'x', message: 'y' })
  chat = conversation.addPrompt(chat, 'next')
  assert.deepEqual(conversation.toMessages(chat), [{ role: 'user', content: 'next' }])
  chat = conversation.addPrompt(conversation.end(conversation.receive(chat, 'chunk', { text: 'part' }), 'stopped'), 'more')
  assert.deepEqual(
    conversation.toMessages(chat).map(({ content }) => content),
    ['next', 'part', 'more'],
  )
})

test('a rating finds its answer by its request', () => {
  let chat = conversation.end(
    conversation.receive(conversation.addPrompt(conversation.EMPTY, 'q'), 'usage', { request_id: 'req_1' }),
    'done',
  )
  chat = conversation.rate(chat, 'req_1', 'up')
  assert.equal(chat.messages[1].rating, 'up')
  assert.deepEqual(conversation.rate(chat, '', 'down'), chat)
})

test('an answer that was stopped can be rated as soon as there is something of it', () => {
  let chat = conversation.addPrompt(conversation.EMPTY, 'q')
  const stopped = () => conversation.end(chat, 'stopped').messages[1]
  assert.equal(conversation.canBeRated(stopped()), false)
  chat = conversation.receive(chat, 'began', { request_id: 'req_1' })
  assert.equal(conversation.canBeRated(stopped()), false)
  chat = conversation.receive(chat, 'chunk', { text: 'half' })
  assert.equal(conversation.canBeRated(chat.messages[1]), false)
  assert.equal(conversation.canBeRated(stopped()), true)
  assert.equal(stopped().requestId, 'req_1')
  const broken = conversation.receive(chat, 'problem', { code: 'x', message: 'y' })
  assert.equal(conversation.canBeRated(broken.messages[1]), false)
  assert.equal(conversation.canBeRated(undefined), false)
})

const REQUEST = {
  model: 'llama-3',
  messages: [
    { role: 'system', content: 'Be brief' },
    { role: 'user', content: 'It\'s "hot"\n$(echo gone) `x` \\ – ü' },
  ],
  temperature: 0.2,
  max_tokens: 64,
  reasoning_effort: 'low',
}

test('the samples name model, address and parameters, and no key', () => {
  const samples = toSamples('https://ai.example', REQUEST)
  for (const code of [samples.curl, samples.python, samples.javascript]) assert.match(code, /https:\/\/ai\.example/)
  for (const code of Object.values(samples)) {
    assert.match(code, /llama-3/)
    assert.match(code, /0\.2/)
    assert.doesNotMatch(code, /aip_/)
  }
  assert.match(samples.javascript, /"maxTokens": 64/)
  assert.match(samples.python, /reasoning_effort="low",/)
  assert.match(samples.aicli, /^aicli infer -m llama-3 --temperature 0\.2 --max-tokens 64 --reasoning-effort low -s 'Be brief' /)
  assert.match(toSamples('x', { model: 'm', messages: [{ role: 'user', content: '-v' }] }).aicli, / -- -v$/)
})

test('the samples name the file of an image instead of its data', () => {
  const messages = [{ role: 'user', content: toContent('What is it?', [PHOTO]) }]
  assert.deepEqual(messages[0].content, [
    { type: 'image_url', image_url: { url: "data:image/png;base64,<my 'photo'.png>" } },
    { type: 'text', text: 'What is it?' },
  ])
  assert.equal(toContent('hi', []), 'hi')
  assert.equal(toSamples('x', { model: 'm', messages }).aicli, `aicli infer -m m --image 'my '\\''photo'\\''.png' 'What is it?'`)
})

if (process.env.SAMPLES_TO) {
  const { writeFileSync } = await import('node:fs')
  writeFileSync(process.env.SAMPLES_TO, JSON.stringify({ request: REQUEST, samples: toSamples('https://ai.example', REQUEST) }))
}

const STREAM =
  ': hello\n\nevent: chunk\nid: 7\ndata: {"text":\ndata: "x"}\n\r\ndata:no space\r\n\r\nevent: nothing\n\ndata\rdata: y\r\rretry: 5\ndata: ü🙂\n\ndata: cut off'
const EVENTS = [
  { event: 'chunk', data: '{"text":\n"x"}', id: '7' },
  { event: 'message', data: 'no space', id: '7' },
  { event: 'message', data: '\ny', id: '7' },
  { event: 'message', data: 'ü🙂', id: '7' },
]

test('events are the same wherever the stream is cut', () => {
  assert.deepEqual(new EventParser().push(STREAM), EVENTS)
  for (let cut = 0; cut <= STREAM.length; cut += 1) {
    const parser = new EventParser()
    assert.deepEqual([...parser.push(STREAM.slice(0, cut)), ...parser.push(STREAM.slice(cut))], EVENTS, `cut at ${cut}`)
  }
  const parser = new EventParser()
  assert.deepEqual(
    [...STREAM].flatMap((char) => parser.push(char)),
    EVENTS,
  )
})

test('an endless event is refused, in one line or in many', () => {
  const line = 'x'.repeat(10_000)
  assert.throws(() => {
    const parser = new EventParser()
    for (let count = 0; count <= MAX_EVENT_CHARACTERS / 10_000; count += 1) parser.push(line)
  })
  assert.throws(() => {
    const parser = new EventParser()
    for (let count = 0; count <= MAX_EVENT_CHARACTERS / 10_000; count += 1) parser.push(`data: ${line}\n`)
  })
})
