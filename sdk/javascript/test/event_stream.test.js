import assert from 'node:assert/strict'
import { test } from 'node:test'
import { AnswerBroken } from '../src/errors.js'
import { EventStreamParser, MAX_EVENT_BYTES } from '../src/event_stream.js'

const bytesOf = (text) => new TextEncoder().encode(text)

const STREAM = bytesOf(
  '\uFEFF: hello\r\n\r\ndata: {"text":"grüße 🦊"}\r\nid: r-1\r\n\r\n' +
    'data:first\rdata: second\r\revent: x\ndata:  two spaces\n\nid: r-2\n\ndata\n\ndata: \uFEFFkept\n\uFEFFdata: no field\nnonsense\n\n: still here\n\n',
)
const EVENTS = [
  { data: '{"text":"grüße 🦊"}', id: 'r-1' },
  { data: 'first\nsecond', id: null },
  { data: ' two spaces', id: null },
  { data: '', id: null },
  { data: '\uFEFFkept', id: null },
]

function parsed(chunks) {
  const parser = new EventStreamParser()
  return chunks.flatMap((chunk) => [...parser.feed(chunk)])
}

test('split at every byte, and at every place in two and three, gives what the whole gives', () => {
  assert.deepEqual(parsed([STREAM]), EVENTS)
  assert.deepEqual(parsed([...STREAM].map((byte) => Uint8Array.of(byte))), EVENTS)
  for (let at = 0; at <= STREAM.length; at++) {
    assert.deepEqual(parsed([STREAM.subarray(0, at), STREAM.subarray(at)]), EVENTS)
    assert.deepEqual(parsed([STREAM.subarray(0, at), new Uint8Array(0), STREAM.subarray(at, at + 2), STREAM.subarray(at + 2)]), EVENTS)
  }
})

test('a chunk that is used again by who gave it changes nothing', () => {
  const parser = new EventStreamParser()
  const chunk = bytesOf('data: on')
  assert.deepEqual([...parser.feed(chunk)], [])
  chunk.fill(33)
  assert.deepEqual([...parser.feed(bytesOf('e\n\n'))], [{ data: 'one', id: null }])
})

test('an event that is not ended is none', () => {
  assert.deepEqual(parsed([bytesOf('data: half\n')]), [])
  assert.deepEqual(parsed([bytesOf('data: half')]), [])
})

test('what is no UTF-8 is refused, and not passed over', () => {
  for (const bad of [[0xff], [0xc3, 0x28], [0xed, 0xa0, 0x80], [0xf0, 0x9f]]) {
    const line = Uint8Array.of(...bytesOf('data: '), ...bad, 10)
    assert.throws(() => parsed([line]), AnswerBroken)
    assert.throws(() => parsed([...line].map((byte) => Uint8Array.of(byte))), AnswerBroken)
  }
})

test('yields the complete events before a refused one, however they were split', () => {
  const bytes = Uint8Array.of(...bytesOf('data: one\n\ndata: two\n\ndata: '), 0xff, 10)
  for (let at = 0; at <= bytes.length; at++) {
    const parser = new EventStreamParser()
    const found = []
    assert.throws(() => {
      for (const chunk of [bytes.subarray(0, at), bytes.subarray(at)]) for (const { data } of parser.feed(chunk)) found.push(data)
    }, AnswerBroken)
    assert.deepEqual(found, ['one', 'two'])
  }
})

test('a line without an end, and an event of lines without an end, are refused before they fill the memory', () => {
  const part = new Uint8Array(65536).fill(97)
  const lines = bytesOf('data: abc\n'.repeat(6000))
  for (const each of [part, lines, bytesOf(': comment\n'.repeat(6000))]) {
    const parser = new EventStreamParser()
    let fed = 0
    assert.throws(() => {
      for (; fed < 2 * MAX_EVENT_BYTES; fed += each.length) [...parser.feed(each)]
    }, AnswerBroken)
    assert.ok(fed <= MAX_EVENT_BYTES + each.length, `${fed}`)
  }
})

test('any number of events that end are taken', () => {
  const parser = new EventStreamParser()
  const many = bytesOf(`data: ${'a'.repeat(1000)}\n\n`.repeat(100))
  let found = 0
  for (let fed = 0; fed < 2 * MAX_EVENT_BYTES; fed += many.length) found += [...parser.feed(many)].length
  assert.ok(found > 16_000)
})
