// What answers have, whole and as events, and the client's methods, errors and options.
import assert from 'node:assert/strict'
import Anthropic from '@anthropic-ai/sdk'
import { jsonSchemaOutputFormat } from '@anthropic-ai/sdk/helpers/json-schema'
import { zodOutputFormat } from '@anthropic-ai/sdk/helpers/zod'
import { check, ensureNamed, errorOf, fieldsOf, tagsOf } from '../../checklist.js'
import * as shared from './client.js'

const { ADA, EVERYTHING, HELLO, IMAGE, MODEL, Person, ROME, SCRIPTED_MODEL, TOOL, TYPES, ask, client, everything, said, text, user } = shared

/** Return the events of an answer. */
async function events(fields = everything, there = client) {
  const found = []
  for await (const event of await there.messages.create({ ...fields, stream: true })) found.push(event)
  return found
}

// A whole answer.
check(['Message.id', 'Message.type', 'Message.role', 'Message.model', 'Message.content'], async () => {
  const answer = await ask(everything)
  assert.deepEqual([answer.id.slice(0, 4), answer.type, answer.role, answer.model], ['msg_', 'message', 'assistant', SCRIPTED_MODEL])
  assert.deepEqual(
    answer.content.map((block) => block.type),
    ['thinking', 'text', 'tool_use'],
  )
})
check(['Message.usage', 'Usage.input_tokens', 'Usage.output_tokens', 'Usage.cache_read_input_tokens', 'Usage.output_tokens_details'], async () => {
  const { usage } = await ask({ ...said({ think: 'Let me see.', say: 'Hello you.' }), thinking: { type: 'adaptive' } })
  assert.deepEqual([usage.output_tokens, usage.output_tokens_details.thinking_tokens, usage.cache_read_input_tokens], [5, 3, 3])
  assert.ok(usage.input_tokens > 0)
})
for (const [reason, fields] of Object.entries({
  end_turn: said(HELLO),
  max_tokens: said({ say: 'Hello', finish: 'length' }),
  tool_use: { ...said({ calls: [ROME] }), tools: [TOOL] },
})) {
  check(`StopReason.${reason}`, async () => {
    assert.equal((await ask(fields)).stop_reason, reason)
    assert.equal((await events(fields)).at(-2).delta.stop_reason, reason)
  })
}
check('StopReason.refusal', async () => {
  // Guardrails of this key end an answer at its first word.
  const guarded = new Anthropic({ apiKey: process.env.REFUSED_API_KEY, maxRetries: 0 })
  assert.equal((await guarded.messages.create(said(HELLO))).stop_reason, 'refusal')
  assert.equal((await events(said(HELLO), guarded)).at(-2).delta.stop_reason, 'refusal')
})
check(['StopReason.stop_sequence', 'Message.stop_reason', 'Message.stop_sequence'], async () => {
  const asked = { model: MODEL, max_tokens: 60, stop_sequences: ['e'], messages: [{ role: 'user', content: 'Repeat: Hello' }] }
  const { delta } = (await events(asked)).at(-2)
  assert.deepEqual([delta.stop_reason, delta.stop_sequence], ['stop_sequence', 'e'])
})

// What only Anthropic's servers have: the client takes answers without.
const ABSENT = {
  Message: ['container', 'diagnostics', 'stop_details'],
  Usage: ['cache_creation', 'cache_creation_input_tokens', 'inference_geo', 'server_tool_use', 'service_tier', 'speed'],
  MessageDeltaUsage: ['cache_creation_input_tokens', 'server_tool_use'],
}
for (const [kind, names] of Object.entries(ABSENT)) {
  for (const name of names) {
    check(`${kind}.${name}`, async () => {
      const answer = await ask({})
      const found = { Message: answer, Usage: answer.usage, MessageDeltaUsage: (await events()).at(-2).usage }[kind]
      assert.ok(!found[name])
    })
  }
}
check('StopReason.pause_turn', async () => assert.notEqual((await ask({})).stop_reason, 'pause_turn'))
check('StopReason.model_context_window_exceeded', async () => {
  assert.notEqual((await ask(said({ say: 'Hello', finish: 'length' }))).stop_reason, 'model_context_window_exceeded')
})

// Events.
check(['event.message_start', 'event.message_stop'], async () => {
  const found = await events()
  assert.deepEqual([found[0].type, found[0].message.content, found.at(-1).type], ['message_start', [], 'message_stop'])
})
check(['event.content_block_start', 'event.content_block_stop'], async () => {
  const found = await events()
  const starts = found.filter((event) => event.type === 'content_block_start')
  assert.deepEqual(
    starts.map((event) => [event.index, event.content_block.type]),
    [
      [0, 'thinking'],
      [1, 'text'],
      [2, 'tool_use'],
    ],
  )
  assert.equal(found.filter((event) => event.type === 'content_block_stop').length, 3)
})
check(
  ['event.message_delta', 'MessageDeltaUsage.input_tokens', 'MessageDeltaUsage.output_tokens', 'MessageDeltaUsage.cache_read_input_tokens', 'MessageDeltaUsage.output_tokens_details'],
  async () => {
    const { type, usage } = (await events()).at(-2)
    assert.deepEqual([type, usage.cache_read_input_tokens, usage.output_tokens_details.thinking_tokens], ['message_delta', 3, 3])
    assert.ok(usage.input_tokens > 0 && usage.output_tokens > 0)
  },
)
const joined = async (kind, field) =>
  (await events())
    .filter((event) => event.type === 'content_block_delta' && event.delta.type === kind)
    .map((event) => event.delta[field])
    .join('')
check(['event.content_block_delta', 'delta.text_delta'], async () => assert.equal(await joined('text_delta', 'text'), EVERYTHING.say))
check('delta.thinking_delta', async () => assert.equal(await joined('thinking_delta', 'thinking'), EVERYTHING.think))
check('delta.input_json_delta', async () => assert.deepEqual(JSON.parse(await joined('input_json_delta', 'partial_json')), ROME[1]))
check('delta.signature_delta', async () => assert.ok(await joined('signature_delta', 'signature')))
check('delta.citations_delta', async () => assert.equal(await joined('citations_delta', 'citation'), ''))
ensureNamed('event', [...tagsOf(TYPES, 'RawMessageStreamEvent')])
ensureNamed('delta', [...tagsOf(TYPES, 'RawContentBlockDelta')])
for (const kind of ['Message', 'Usage', 'MessageDeltaUsage']) ensureNamed(kind, fieldsOf(TYPES, kind))
ensureNamed('StopReason', shared.literalsOf(TYPES, 'StopReason'))

// messages.stream(), whose events also carry what came so far.
const STREAM_EVENTS = {
  connect: () => true,
  streamEvent: (event, snapshot) => event.type === 'message_stop' && snapshot.content.length === 3,
  text: (delta, snapshot) => snapshot === EVERYTHING.say,
  inputJson: (partial, snapshot) => snapshot.city === 'Rome',
  thinking: (delta, snapshot) => snapshot === EVERYTHING.think,
  signature: (signature) => signature !== '',
  contentBlock: (block) => block.type === 'tool_use',
  message: (message) => message.content.length === 3,
  finalMessage: (message) => message.stop_reason === 'tool_use',
  end: () => true,
}
for (const [name, expects] of Object.entries(STREAM_EVENTS)) {
  check(`messages.stream().on.${name}`, async () => {
    let last
    const stream = client.messages.stream(everything).on(name, (...given) => (last = structuredClone(given)))
    await stream.done()
    assert.ok(expects(...last), JSON.stringify(last))
  })
}
check('messages.stream().on.citation', async () => {
  // Only Anthropic's models cite.
  const stream = client.messages.stream(everything).on('citation', () => assert.fail('a citation'))
  await stream.done()
})
check('messages.stream().on.error', async () => {
  const stream = client.messages.stream({ ...said(HELLO), model: 'claude-9' })
  const error = new Promise((resolve) => stream.on('error', resolve))
  assert.equal((await error).status, 404)
  await errorOf(stream.done())
})
check(['messages.stream().on.abort', 'messages.stream().abort()'], async () => {
  const stream = client.messages.stream(said(HELLO))
  const aborted = new Promise((resolve) => stream.on('abort', resolve))
  stream.abort()
  assert.ok((await aborted) instanceof Anthropic.APIUserAbortError)
  await errorOf(stream.done())
})
ensureNamed('messages.stream().on', fieldsOf('@anthropic-ai/sdk/lib/MessageStream.d.ts', 'MessageStreamEvents'))
check(['messages.stream().finalMessage()', 'messages.stream().finalText()', 'messages.stream().currentMessage'], async () => {
  const stream = client.messages.stream(said(HELLO))
  assert.equal(await stream.finalText(), HELLO.say)
  assert.deepEqual((await stream.finalMessage()).content, stream.currentMessage?.content ?? (await stream.finalMessage()).content)
})
check(['messages.stream(): for await', 'messages.stream().once()', 'messages.stream().off()', 'messages.stream().emitted()'], async () => {
  const stream = client.messages.stream(said(HELLO))
  const never = () => assert.fail('it was taken off')
  stream.on('text', never).off('text', never)
  const first = stream.emitted('text')
  let pieces = ''
  for await (const event of stream) pieces += event.delta?.text ?? ''
  assert.deepEqual([pieces, await first], [HELLO.say, 'Hello '])
})
check(['messages.stream().withResponse()', 'messages.stream().request_id', 'messages.stream().response'], async () => {
  const stream = client.messages.stream(said(HELLO))
  const { request_id, response } = await stream.withResponse()
  assert.deepEqual([response.status, request_id], [200, stream.request_id])
  assert.ok(request_id)
  await stream.done()
})
check(['messages.stream().toReadableStream()', 'MessageStream.fromReadableStream()'], async () => {
  const passed = client.messages.stream(said(HELLO)).toReadableStream()
  const { MessageStream } = await import('@anthropic-ai/sdk/lib/MessageStream')
  assert.equal(await MessageStream.fromReadableStream(passed).finalText(), HELLO.say)
})

// Structured output.
const PERSON = said({ say: JSON.stringify(ADA) })
const SCHEMA = { type: 'object', properties: { name: { type: 'string' }, age: { type: 'integer' } }, required: ['name', 'age'] }
for (const [name, format] of [
  ['zodOutputFormat()', zodOutputFormat(Person)],
  ['jsonSchemaOutputFormat()', jsonSchemaOutputFormat({ ...SCHEMA, additionalProperties: false })],
]) {
  check(`messages.parse(): ${name}`, async () => {
    assert.deepEqual((await client.messages.parse({ ...PERSON, output_config: { format } })).parsed_output, ADA)
  })
  check(`messages.stream(): ${name}`, async () => {
    assert.deepEqual((await client.messages.stream({ ...PERSON, output_config: { format } }).finalMessage()).parsed_output, ADA)
  })
}

// Counting.
for (const name of fieldsOf(TYPES, 'MessageCountTokensParams')) {
  const values = {
    messages: [user(text('Hello '.repeat(100)), IMAGE)],
    model: SCRIPTED_MODEL,
    system: 'Be brief. '.repeat(50),
    tools: [TOOL],
    tool_choice: { type: 'auto' },
    thinking: { type: 'adaptive' },
    output_config: { effort: 'low' },
    cache_control: { type: 'ephemeral' },
    speed: 'fast',
    user_profile_id: 'profile_1',
    workspace_id: 'wrkspc_1',
  }
  check(`countTokens.${name}`, async () => {
    assert.ok(name in values, 'there is no value for it')
    const fields = { model: SCRIPTED_MODEL, messages: [user(text('Hello'))] }
    const { input_tokens: few } = await client.messages.countTokens(fields)
    const { input_tokens: counted } = await client.messages.countTokens({ ...fields, [name]: values[name] })
    assert.ok(counted >= few && few > 0)
  })
}

// Models.
check('models.list()', async () => {
  const found = []
  for await (const model of client.models.list({ limit: 1 })) found.push(model.id)
  assert.ok(found.includes(SCRIPTED_MODEL))
})
check('models.retrieve()', async () => {
  const { id, type, display_name, created_at, lifecycle, max_input_tokens } = await client.models.retrieve(SCRIPTED_MODEL)
  assert.deepEqual([id, type, display_name, lifecycle, max_input_tokens], [SCRIPTED_MODEL, 'model', SCRIPTED_MODEL, 'active', 200_000])
  assert.ok(Date.parse(created_at) > 0)
})

// Promises, errors and options.
check(['create().withResponse()', 'create().asResponse()', 'Message._request_id'], async () => {
  const { data, response, request_id } = await client.messages.create(said(HELLO)).withResponse()
  assert.deepEqual([response.headers.get('x-request-id'), data._request_id], [request_id, request_id])
  assert.ok((await client.messages.create(said(HELLO)).asResponse()).ok)
})
for (const [kind, error_type, failing] of [
  ['BadRequestError', 'invalid_request_error', () => client.messages.create({ ...said(HELLO), max_tokens: -1 })],
  ['NotFoundError', 'not_found_error', () => client.messages.create({ ...said(HELLO), model: 'claude-9' })],
  ['NotFoundError: a path', 'not_found_error', () => client.post('/v1/messages/none')],
  ['AuthenticationError', 'authentication_error', () => client.withOptions({ apiKey: 'aip_live_wrong' }).messages.create(said(HELLO))],
]) {
  check(kind, async () => {
    const error = await errorOf(failing())
    assert.ok(error instanceof Anthropic[kind.split(':')[0]], error)
    assert.deepEqual([error.type, error.error.type, error.error.error.type], [error_type, 'error', error_type])
    assert.ok(error.requestID && error.error.error.message)
  })
}
check('APIConnectionTimeoutError', async () => {
  const error = await errorOf(client.messages.create(said(HELLO), { timeout: 1 }))
  assert.ok(error instanceof Anthropic.APIConnectionTimeoutError, error)
})
check('signal', async () => {
  const error = await errorOf(client.messages.create(said(HELLO), { signal: AbortSignal.abort() }))
  assert.ok(error instanceof Anthropic.APIUserAbortError, error)
})
check('authToken', async () => {
  const bearer = new Anthropic({ apiKey: null, authToken: client.apiKey, maxRetries: 0 })
  assert.equal((await bearer.messages.create(said(HELLO))).content[0].text, HELLO.say)
})
check(['defaultHeaders', 'headers', 'query'], async () => {
  const other = client.withOptions({ defaultHeaders: { 'anthropic-beta': 'one-2026-01-01', 'anthropic-version': '2099-01-01' } })
  const answer = await other.messages.create(said(HELLO), { headers: { 'x-a': 'b' }, query: { beta: 'true' } })
  assert.equal(answer.content[0].text, HELLO.say)
})
check('a field from the future', async () => {
  assert.equal((await ask({ from_the_future: { a: 1 } }, { ignores: ['from_the_future'] })).content[0].text, HELLO.say)
})
