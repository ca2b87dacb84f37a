// Every field, event and helper of chat completions.
import assert from 'node:assert/strict'
import OpenAI from 'openai'
import { ContentFilterFinishReasonError, LengthFinishReasonError } from 'openai/error'
import { standardFunction, standardResponseFormat } from 'openai/helpers/standard-schema'
import { zodFunction, zodResponseFormat } from 'openai/helpers/zod'
import { ChatCompletionStream } from 'openai/lib/ChatCompletionStream'
import { z } from 'zod'
import { check, ensureNamed, errorOf, fieldsOf, script } from '../../checklist.js'
import { ADA, NO_EFFECT, PARAMETERS, PNG, Person, ROME, SCRIPTED_MODEL, chat, client, hasNoEffect, isRefused, works } from './client.js'

const FUNCTION = { name: 'get_weather', description: 'Says the weather.', parameters: PARAMETERS }
const TOOL = { type: 'function', function: FUNCTION }
const create = (fields) => client.chat.completions.create(fields)

/** Return what reached the model of a field. */
async function report(field, more = {}, ...messages) {
  const answer = await works(create, { ...chat({ report: [field] }, ...messages), ...more })
  return JSON.parse(answer.choices[0].message.content)[field]
}
const say = async (fields) => (await works(create, { ...chat({ say: 'Hi' }), ...fields })).choices[0]

// Fields that reach the model.
const REACHING = {
  temperature: 0.25,
  top_p: 0.5,
  frequency_penalty: 0.5,
  presence_penalty: -0.5,
  seed: 7,
  logit_bias: { 42: -50 },
  reasoning_effort: 'low',
  max_tokens: 77,
}
for (const [name, value] of Object.entries(REACHING)) {
  check(`chat.${name}`, async () => assert.deepEqual(await report(name, { [name]: value }), value))
}
check('chat.max_completion_tokens', async () => assert.equal(await report('max_tokens', { max_completion_tokens: 55 }), 55))
check('chat.stop', async () => assert.deepEqual(await report('stop', { stop: 'END' }), ['END']))
check('chat.model', async () => assert.equal((await works(create, chat({ say: 'Hi' }))).model, SCRIPTED_MODEL))
check('chat.n', async () => assert.equal((await works(create, { ...chat({ say: 'Hi' }), n: 2 })).choices.length, 2))
check(['chat.logprobs', 'chat.top_logprobs'], async () => {
  const { content } = (await say({ logprobs: true, top_logprobs: 2 })).logprobs
  assert.deepEqual(content.map((token) => [token.token, token.logprob, token.top_logprobs.length]), [['Hi', -0.5, 2]])
})
check('chat.response_format', async () => {
  const schema = { type: 'object', properties: { age: { type: 'integer' } }, required: ['age'], additionalProperties: false }
  const json_schema = { name: 'person', strict: true, schema }
  assert.deepEqual((await report('response_format', { response_format: { type: 'json_schema', json_schema } })).json_schema.schema, schema)
  assert.equal((await report('response_format', { response_format: { type: 'json_object' } })).type, 'json_object')
  assert.equal(await report('response_format', { response_format: { type: 'text' } }), null)
})

// Tools.
check('chat.tools', async () => {
  assert.deepEqual(await report('tools', { tools: [{ ...TOOL, function: { ...FUNCTION, strict: true } }] }), [TOOL])
  const answer = await works(create, { ...chat({ calls: [ROME, ROME] }), tools: [TOOL] })
  const { message, finish_reason } = answer.choices[0]
  assert.deepEqual([message.content, finish_reason], [null, 'tool_calls'])
  assert.deepEqual(message.tool_calls.map((call) => [call.function.name, JSON.parse(call.function.arguments)]), [ROME, ROME])
})
const CUSTOM = { type: 'custom', custom: { name: 'shell' } }
check('chat.tools custom', () => hasNoEffect(create, 'tools[custom]', { ...chat({ say: 'Hi' }), tools: [TOOL, CUSTOM] }))
check('chat.tool_choice', async () => {
  const tools = [TOOL, { type: 'function', function: { name: 'other' } }]
  assert.equal(await report('tools', { tools, tool_choice: 'none' }), null)
  assert.equal(await report('tool_choice', { tools, tool_choice: 'auto' }), null)
  assert.equal(await report('tool_choice', { tools, tool_choice: 'required' }), 'required')
  const named = { type: 'function', function: { name: 'get_weather' } }
  assert.deepEqual(await report('tools', { tools, tool_choice: named }), [TOOL])
  assert.deepEqual(await report('tools', { tools, tool_choice: { type: 'allowed_tools', allowed_tools: { mode: 'auto', tools: [named] } } }), [TOOL])
})
check('chat.tool_choice custom', () => isRefused(create, "names 'shell'", { ...chat({ say: 'Hi' }), tools: [TOOL, CUSTOM], tool_choice: CUSTOM }))
check('chat.parallel_tool_calls', async () => assert.equal(await report('parallel_tool_calls', { tools: [TOOL], parallel_tool_calls: false }), false))

// Messages.
check('chat.messages', async () => {
  const sent = [
    { role: 'system', content: 'Be kind.' },
    { role: 'developer', content: [{ type: 'text', text: 'Be brief.' }] },
    { role: 'user', content: [{ type: 'text', text: 'Hi' }] },
    { role: 'assistant', content: [{ type: 'refusal', refusal: 'No.' }], refusal: null },
  ]
  const reached = await report('messages', {}, ...sent)
  assert.deepEqual(reached.slice(0, 3).map(({ role, content }) => [role, content]), [
    ['system', 'Be kind.\n\nBe brief.'],
    ['user', 'Hi'],
    ['assistant', 'No.'],
  ])
})
const picture = { type: 'image_url', image_url: { url: PNG, detail: 'low' } }
check('chat.messages image_url', async () => {
  const [part] = await report('messages.0.content', {}, { role: 'user', content: [picture] })
  assert.equal(part.type, 'image_url')
})
const called = { role: 'assistant', tool_calls: [{ id: 'call_1', type: 'function', function: { name: 'get_weather', arguments: '{}' } }] }
const results = async (...messages) =>
  (await works(create, { model: SCRIPTED_MODEL, messages: [{ role: 'user', content: script({ calls: [ROME] }) }, ...messages], tools: [TOOL] }))
    .choices[0].message.content
check('chat.messages tool', async () => {
  assert.equal(await results(called, { role: 'tool', tool_call_id: 'call_1', content: '18' }), 'Results: 18; images: 0')
  const content = [{ type: 'text', text: 'A map' }, picture]
  assert.equal(await results(called, { role: 'tool', tool_call_id: 'call_1', content }), 'Results: A map; images: 1')
})
check('chat.messages name', () => hasNoEffect(create, 'messages.name', chat({ say: 'Hi' }, { role: 'user', content: 'Hi', name: 'ada' })))
for (const [kind, part] of Object.entries({
  input_audio: { input_audio: { data: 'AAAA', format: 'wav' } },
  file: { file: { file_data: 'AAAA', filename: 'a.pdf' } },
})) {
  const message = { role: 'user', content: [{ type: kind, ...part }] }
  check(`chat.messages ${kind}`, () => isRefused(create, 'audio and files are not supported', chat({ say: 'Hi' }, message), 'messages[0].content[0]'))
}
check(['chat.functions', 'chat.function_call', 'chat.messages function_call'], async () => {
  const functions = [FUNCTION, { name: 'other' }]
  const more = { functions, function_call: { name: 'get_weather' } }
  assert.deepEqual(await report('tools', more), [TOOL])
  const { message, finish_reason } = (await works(create, { ...chat({ calls: [ROME] }), ...more })).choices[0]
  assert.deepEqual([finish_reason, JSON.parse(message.function_call.arguments)], ['function_call', ROME[1]])
  const messages = [{ role: 'user', content: script({ calls: [ROME] }) }, message, { role: 'function', name: 'get_weather', content: '18' }]
  assert.equal((await create({ model: SCRIPTED_MODEL, messages, functions })).choices[0].message.content, 'Results: 18; images: 0')
})

// Fields without effect, and refused ones.
check('chat.service_tier', async () => {
  assert.equal((await works(create, { ...chat({ say: 'Hi' }), service_tier: 'flex' })).service_tier, 'flex')
})
const IGNORED = {
  ...NO_EFFECT,
  store: true,
  verbosity: 'low',
  prediction: { type: 'content', content: 'Hi' },
  web_search_options: {},
}
for (const [name, value] of Object.entries(IGNORED)) {
  check(`chat.${name}`, () => hasNoEffect(create, name, { ...chat({ say: 'Hi' }), [name]: value }))
}
const REFUSED = {
  audio: [{ voice: 'alloy', format: 'wav' }, 'models only generate text'],
  modalities: [['text', 'audio'], 'models only generate text'],
  moderation: [{ model: 'omni-moderation-latest' }, 'policies decide'],
}
for (const [name, [value, sentence]] of Object.entries(REFUSED)) {
  check(`chat.${name}`, () => isRefused(create, sentence, { ...chat({ say: 'Hi' }), [name]: value }, name))
}
check('chat.metadata', async () => assert.equal((await say({ metadata: { conversation_id: 'c1', project: 'x' } })).message.content, 'Hi'))
check('chat of a later version', () => hasNoEffect(create, 'next_year', { ...chat({ say: 'Hi' }), next_year: 1 }))

// Answers.
check('chat answer usage', async () => {
  const { usage } = await works(create, chat({ think: 'Well, well.', say: 'Hi you' }))
  assert.equal(usage.total_tokens, usage.prompt_tokens + usage.completion_tokens)
  assert.deepEqual([usage.prompt_tokens_details.cached_tokens, usage.completion_tokens_details.reasoning_tokens], [3, 2])
})
check('chat answer finish_reason', async () => {
  const answer = await works(create, chat({ say: 'Hi', finish: 'length' }))
  assert.equal(answer.choices[0].finish_reason, 'length')
})
check('chat answer reasoning_content', async () => {
  const answer = await works(create, chat({ think: 'Well.', say: 'Hi' }))
  assert.equal(answer.choices[0].message.reasoning_content, 'Well.')
})

// Streams.
check('chat.stream', async () => {
  let text = ''
  for await (const chunk of await create({ ...chat({ say: 'Hi you' }), stream: true })) text += chunk.choices[0].delta.content ?? ''
  assert.equal(text, 'Hi you')
})
check('chat.stream_options', async () => {
  const chunks = []
  for await (const chunk of await create({ ...chat({ say: 'Hi' }), stream: true, stream_options: { include_usage: true } })) chunks.push(chunk)
  assert.deepEqual([chunks.at(-1).choices, chunks.at(-1).usage.completion_tokens, chunks[0].usage ?? null], [[], 1, null])
  const quiet = { stream: true, stream_options: { include_obfuscation: false } }
  await hasNoEffect(create, 'stream_options.include_obfuscation', { ...chat({ say: 'Hi' }), ...quiet })
})
check('chat stream tee() and toReadableStream()', async () => {
  const [first, second] = (await create({ ...chat({ say: 'Hi you' }), stream: true })).tee()
  const texts = []
  for await (const chunk of first) texts.push(chunk.choices[0].delta.content ?? '')
  assert.equal(texts.join(''), 'Hi you')
  assert.equal(await ChatCompletionStream.fromReadableStream(second.toReadableStream()).finalContent(), 'Hi you')
})

const streamOf = (turn, more = {}) => client.chat.completions.stream({ ...chat(turn), ...more })
const tools = [zodFunction({ name: 'Person', parameters: Person })]
const CALL = { calls: [['Person', ADA]] }
const USAGE = { stream_options: { include_usage: true } }

/** Check the arguments of one of the events. */
function event(name, turn, more, test) {
  check(`chat.event.${name}`, async () => {
    const stream = streamOf(turn, more)
    const found = []
    stream.on(name, (...values) => found.push(values))
    await stream.done()
    assert.ok(found.length)
    test(found.at(-1), found)
  })
}
event('connect', { say: 'Hi' }, {}, () => {})
event('content', { say: 'Hi you' }, {}, ([delta, snapshot]) => assert.deepEqual([delta, snapshot], ['you', 'Hi you']))
event('chunk', { say: 'Hi' }, {}, ([chunk, snapshot]) => assert.deepEqual([chunk.object, snapshot.choices[0].message.content], ['chat.completion.chunk', 'Hi']))
event('content.delta', { say: 'Hi you' }, {}, ([props]) => assert.equal(props.snapshot, 'Hi you'))
event('content.done', { say: JSON.stringify(ADA) }, { response_format: zodResponseFormat(Person, 'person') }, ([props]) => assert.deepEqual(props.parsed, ADA))
event('tool_calls.function.arguments.delta', CALL, { tools }, ([props]) => assert.deepEqual(props.parsed_arguments, ADA))
event('tool_calls.function.arguments.done', CALL, { tools }, ([props]) => assert.deepEqual(props.parsed_arguments, ADA))
event('logprobs.content.delta', { say: 'Hi you' }, { logprobs: true }, ([props]) => assert.equal(props.snapshot.length, 2))
event('logprobs.content.done', { say: 'Hi you' }, { logprobs: true }, ([props]) => assert.equal(props.content.length, 2))
event('message', { say: 'Hi' }, {}, ([message]) => assert.deepEqual([message.role, message.content], ['assistant', 'Hi']))
event('chatCompletion', { say: 'Hi' }, {}, ([completion]) => assert.equal(completion.choices[0].finish_reason, 'stop'))
event('functionToolCall', CALL, { tools }, ([called]) => assert.equal(called.name, 'Person'))
event('finalContent', { say: 'Hi' }, {}, ([content]) => assert.equal(content, 'Hi'))
event('finalMessage', { say: 'Hi' }, {}, ([message]) => assert.equal(message.content, 'Hi'))
event('finalChatCompletion', { say: 'Hi' }, {}, ([completion]) => assert.equal(completion.model, SCRIPTED_MODEL))
event('finalFunctionToolCall', CALL, { tools }, ([called]) => assert.deepEqual(JSON.parse(called.arguments), ADA))
event('totalUsage', { say: 'Hi' }, USAGE, ([usage]) => assert.equal(usage.completion_tokens, 1))
event('end', { say: 'Hi' }, {}, () => {})
check('chat.event.error', async () => {
  const errors = []
  const stream = streamOf({ say: 'Hi', finish: 'abort' }).on('error', (error) => errors.push(error))
  await errorOf(stream.done())
  assert.ok(errors[0] instanceof OpenAI.OpenAIError)
})
check('chat.event.abort', async () => {
  const stream = streamOf({ say: 'Hi you' })
  const aborted = []
  stream.on('abort', (error) => aborted.push(error)).on('content', () => stream.abort())
  await errorOf(stream.done())
  assert.ok(aborted[0] instanceof OpenAI.APIUserAbortError)
})

// Helpers.
check('chat.completions.parse()', async () => {
  const answer = await client.chat.completions.parse({ ...chat({ say: JSON.stringify(ADA) }), response_format: zodResponseFormat(Person, 'person') })
  assert.deepEqual(answer.choices[0].message.parsed, ADA)
})
check('zodFunction()', async () => {
  const answer = await client.chat.completions.parse({ ...chat(CALL), tools })
  assert.deepEqual(answer.choices[0].message.tool_calls[0].function.parsed_arguments, ADA)
})
check('standardResponseFormat()', async () => {
  const answer = await client.chat.completions.parse({ ...chat({ say: JSON.stringify(ADA) }), response_format: standardResponseFormat(Person, 'person') })
  assert.deepEqual(answer.choices[0].message.parsed, ADA)
})
check('standardFunction()', async () => {
  const answer = await client.chat.completions.parse({ ...chat(CALL), tools: [standardFunction({ name: 'Person', parameters: Person })] })
  assert.deepEqual(answer.choices[0].message.tool_calls[0].function.parsed_arguments, ADA)
})
const runnable = {
  type: 'function',
  function: { ...FUNCTION, parse: JSON.parse, function: ({ city }) => `18 degrees in ${city}` },
}
for (const stream of [false, true]) {
  check(`chat.completions.runTools() ${stream ? 'with' : 'without'} a stream`, async () => {
    const runner = client.chat.completions.runTools({ ...chat({ calls: [ROME, ROME] }), tools: [runnable], stream })
    assert.equal(await runner.finalContent(), 'Results: 18 degrees in Rome, 18 degrees in Rome; images: 0')
    assert.equal(await runner.finalFunctionToolCallResult(), '18 degrees in Rome')
    assert.equal(runner.allChatCompletions().length, 2)
  })
}
check(['chat.event.functionToolCallResult', 'chat.event.finalFunctionToolCallResult'], async () => {
  const found = []
  const runner = client.chat.completions.runTools({ ...chat({ calls: [ROME] }), tools: [runnable], stream: true })
  runner.on('functionToolCallResult', (text) => found.push(text)).on('finalFunctionToolCallResult', (text) => found.push(text))
  await runner.done()
  assert.deepEqual(found, ['18 degrees in Rome', '18 degrees in Rome'])
})
check('LengthFinishReasonError', async () => {
  const format = zodResponseFormat(z.object({ a: z.string() }), 'a')
  const error = await errorOf(client.chat.completions.parse({ ...chat({ say: '{', finish: 'length' }), response_format: format }))
  assert.ok(error instanceof LengthFinishReasonError)
})
check('ContentFilterFinishReasonError', async () => {
  // The answers of this key are refused at their first word.
  const guarded = client.withOptions({ apiKey: process.env.REFUSED_API_KEY })
  const answer = await guarded.chat.completions.create(chat({ say: 'Hello you' }))
  assert.deepEqual([answer.choices[0].finish_reason, answer.choices[0].message.content], ['content_filter', ''])
  const response_format = zodResponseFormat(Person, 'person')
  const error = await errorOf(guarded.chat.completions.parse({ ...chat({ say: 'Hello' }), response_format }))
  assert.ok(error instanceof ContentFilterFinishReasonError)
})
check('chat asResponse()', async () => {
  const answer = await create(chat({ say: 'Hi' })).asResponse()
  assert.equal((await answer.json()).choices[0].message.content, 'Hi')
})
check('_request_id', async () => assert.ok((await create(chat({ say: 'Hi' })))._request_id))

const COMPLETIONS = 'openai/resources/chat/completions/completions.d.ts'
ensureNamed('chat', fieldsOf(COMPLETIONS, 'ChatCompletionCreateParamsBase'))
const streamed = fieldsOf('openai/lib/ChatCompletionStream.d.ts', 'ChatCompletionStreamEvents')
const run = fieldsOf('openai/lib/AbstractChatCompletionRunner.d.ts', 'AbstractChatCompletionRunnerEvents')
// A refusal of our models is their text.
const events = [...streamed, ...run, ...fieldsOf('openai/lib/EventStream.d.ts', 'BaseEvents')].filter((name) => !name.includes('refusal'))
ensureNamed('chat.event', events)
