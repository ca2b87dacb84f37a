// The providers, and the checks that each of their language models has.
import assert from 'node:assert/strict'
import { createAnthropic } from '@ai-sdk/anthropic'
import { createOpenAI } from '@ai-sdk/openai'
import { createOpenAICompatible } from '@ai-sdk/openai-compatible'
import { Output, ToolLoopAgent, generateObject, generateText, jsonSchema, stepCountIs, streamObject, streamText, tool } from 'ai'
import { z } from 'zod'
import { check, errorOf, script } from '../../checklist.js'

const { ANTHROPIC_BASE_URL, OPENAI_API_KEY, OPENAI_BASE_URL } = process.env
export const { MODEL, SCRIPTED_MODEL } = process.env
export const compatible = createOpenAICompatible({
  name: 'mesh',
  baseURL: OPENAI_BASE_URL,
  apiKey: OPENAI_API_KEY,
  supportsStructuredOutputs: true,
  includeUsage: true,
})
export const openai = createOpenAI({ baseURL: OPENAI_BASE_URL, apiKey: OPENAI_API_KEY })
export const anthropic = createAnthropic({ baseURL: `${ANTHROPIC_BASE_URL}/v1`, apiKey: OPENAI_API_KEY })

// A red pixel.
export const PNG = 'iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mP8z8DwHwAFBQIAX8jx0gAAAABJRU5ErkJggg=='
export const ROME = ['get_weather', { city: 'Rome' }]
export const ADA = { name: 'Ada', age: 36 }
export const Person = z.object({ name: z.string(), age: z.number().int() })
export const get_weather = tool({
  description: 'Says the weather.',
  inputSchema: z.object({ city: z.string() }),
  execute: async ({ city }) => `18 degrees in ${city}`,
})
// A tool whose caller runs it.
export const look = tool({ description: 'Looks.', inputSchema: z.object({ city: z.string() }) })

/** Return the options of a call to the scripted model. */
export const options = (model, turn, more = {}) => ({ model, maxRetries: 0, prompt: script(turn), ...more })

/** Return what reached the model of a field. */
export async function report(model, field, more = {}) {
  const { text } = await generateText(options(model, { report: [field] }, more))
  return JSON.parse(text)[field]
}

/** Return what an answer says had no effect. */
export const ignored = ({ response }) => (response.headers['x-aimesh-ignored'] ?? '').split(', ').filter(Boolean)

const message = (content) => ({ messages: [{ role: 'user', content }], prompt: undefined })

/** Return all parts of a stream. */
export async function partsOf(result) {
  const parts = []
  for await (const part of result.fullStream) parts.push(part)
  return parts
}

/** Add the checks of what every language model has. `more`: the options with which it thinks. */
export function addCommonChecks(name, model, more = {}) {
  const call = (turn, others = {}) => options(model, turn, { ...more, ...others })

  check(`${name} generateText()`, async () => {
    const result = await generateText(call({ think: 'Well, well.', say: 'Hi you' }))
    assert.deepEqual([result.text, result.finishReason, result.reasoningText], ['Hi you', 'stop', 'Well, well.'])
    assert.equal(result.response.modelId, SCRIPTED_MODEL)
    assert.deepEqual(result.warnings, [])
  })
  check(`${name} usage`, async () => {
    const { usage } = await generateText(call({ think: 'Well, well.', say: 'Hi you' }))
    assert.equal(usage.totalTokens, usage.inputTokens + usage.outputTokens)
    assert.deepEqual([usage.inputTokenDetails.cacheReadTokens, usage.outputTokens], [3, 4])
  })
  check(`${name} streamText()`, async () => {
    const result = streamText(call({ say: 'Hi you' }))
    const texts = []
    for await (const text of result.textStream) texts.push(text)
    assert.equal(texts.join(''), 'Hi you')
    assert.equal(await result.finishReason, 'stop')
    assert.equal((await result.usage).outputTokens, 2)
  })
  check(`${name} parts of a stream`, async () => {
    const parts = await partsOf(streamText(call({ think: 'Well, well.', say: 'Hi you', calls: [ROME] }, { tools: { get_weather: look } })))
    const types = new Set(parts.map((part) => part.type))
    const expected = ['start', 'start-step', 'reasoning-start', 'reasoning-delta', 'reasoning-end', 'text-start', 'text-delta', 'text-end']
    expected.push('tool-input-start', 'tool-input-delta', 'tool-input-end', 'tool-call', 'finish-step', 'finish')
    assert.deepEqual(expected.filter((type) => !types.has(type)), [])
    const said = (type) => parts.filter((part) => part.type === type).map((part) => part.text).join('')
    assert.deepEqual([said('reasoning-delta'), said('text-delta')], ['Well, well.', 'Hi you'])
    assert.deepEqual(parts.find((part) => part.type === 'tool-call').input, ROME[1])
  })
  check(`${name} tools`, async () => {
    const result = await generateText(call({ calls: [ROME, ROME] }, { tools: { get_weather: look } }))
    assert.equal(result.finishReason, 'tool-calls')
    assert.deepEqual(result.toolCalls.map(({ toolName, input }) => [toolName, input]), [ROME, ROME])
    const [reached] = await report(model, 'tools', { ...more, tools: { get_weather } })
    assert.deepEqual([reached.function.name, reached.function.description], ['get_weather', 'Says the weather.'])
  })
  check(`${name} toolChoice`, async () => {
    const tools = { get_weather: look, other: tool({ inputSchema: jsonSchema({ type: 'object' }) }) }
    assert.equal((await report(model, 'tools', { ...more, tools, toolChoice: 'none' })) ?? null, null)
    for (const toolChoice of ['required', { type: 'tool', toolName: 'other' }]) {
      const { toolCalls } = await generateText(call({ report: ['tools', 'tool_choice'], as: 'other' }, { tools, toolChoice }))
      const offered = toolCalls[0].input.tools.map((each) => each.function.name)
      assert.deepEqual([toolCalls[0].input.tool_choice, offered], ['required', toolChoice === 'required' ? ['get_weather', 'other'] : ['other']])
    }
  })
  check(`${name} activeTools`, async () => {
    const [only, ...rest] = await report(model, 'tools', { ...more, tools: { get_weather: look, other: look }, activeTools: ['other'] })
    assert.deepEqual([only.function.name, rest], ['other', []])
  })
  check(`${name} stopWhen`, async () => {
    const turns = [{ think: 'Well.', calls: [ROME, ROME] }, { say: 'Wait.', calls: [ROME] }, { say: 'It is warm.' }]
    for (const ask of [generateText, streamText]) {
      const result = await ask(call({ turns }, { tools: { get_weather }, stopWhen: stepCountIs(5) }))
      assert.equal(await result.text, 'It is warm.')
      assert.deepEqual((await result.steps).map(({ toolResults }) => toolResults.length), [2, 1, 0])
    }
  })
  check(`${name} results of tools`, async () => {
    const result = await generateText(call({ calls: [ROME] }, { tools: { get_weather }, stopWhen: stepCountIs(2) }))
    assert.equal(result.text, 'Results: 18 degrees in Rome; images: 0')
  })
  check(`${name} toModelOutput`, async () => {
    const output = { type: 'content', value: [{ type: 'text', text: 'A map' }, { type: 'image-data', data: PNG, mediaType: 'image/png' }] }
    const map = tool({ inputSchema: z.object({ city: z.string() }), execute: () => 'map', toModelOutput: () => output })
    const { text } = await generateText(call({ calls: [ROME] }, { tools: { get_weather: map }, stopWhen: stepCountIs(2) }))
    // openai-compatible has no images in results: it writes them as JSON.
    assert.match(text, name === 'compatible' || name === 'openai.chat' ? /A map/ : /^Results: A map; images: 1$/)
  })
  check(`${name} messages sent back`, async () => {
    const tools = { get_weather: look }
    const first = await generateText(call({ think: 'Well.', say: 'Wait.', calls: [ROME] }, { tools }))
    const result = { type: 'tool-result', toolCallId: first.toolCalls[0].toolCallId, toolName: 'get_weather', output: { type: 'text', value: '18' } }
    const question = { role: 'user', content: script({ calls: [ROME] }) }
    const messages = [question, ...first.response.messages, { role: 'tool', content: [result] }]
    assert.equal((await generateText({ ...call({}), prompt: undefined, messages, tools })).text, 'Results: 18; images: 0')
  })
  check(`${name} system`, async () => {
    assert.equal((await report(model, 'messages.0', { ...more, system: 'Be kind.' })).content, 'Be kind.')
  })
  check(`${name} image part`, async () => {
    const content = [{ type: 'image', image: PNG, mediaType: 'image/png' }, { type: 'text', text: script({ report: ['messages.0.content'] }) }]
    const { text } = await generateText({ ...call({}), ...message(content) })
    assert.equal(JSON.parse(text)['messages.0.content'][0].type, 'image_url')
  })
  check(`${name} file part`, async () => {
    const content = [{ type: 'file', data: 'JVBERi0=', mediaType: 'application/pdf', filename: 'a.pdf' }]
    const error = await errorOf(generateText({ ...call({}), ...message(content) }))
    assert.equal(error.statusCode, 400)
    assert.match(error.message, /files are not supported|is a PDF/)
  })
  for (const [setting, value, field] of [
    ['maxOutputTokens', 77, 'max_tokens'],
    ['temperature', 0.25, 'temperature'],
    ['topP', 0.5, 'top_p'],
  ]) {
    check(`${name} ${setting}`, async () => assert.equal(await report(model, field, { [setting]: value }), value))
  }
  check(`${name} abortSignal`, async () => {
    const controller = new AbortController()
    const result = streamText(call({ say: 'Hi you' }, { abortSignal: controller.signal, onError: () => {} }))
    for await (const part of result.fullStream) {
      if (part.type === 'text-delta') controller.abort()
      if (part.type === 'abort') return
    }
    assert.fail('it was not aborted')
  })
  check(`${name} headers`, async () => {
    const error = await errorOf(generateText(call({ say: 'Hi' }, { headers: { authorization: 'Bearer wrong', 'x-api-key': 'wrong' } })))
    assert.deepEqual([error.statusCode, error.isRetryable], [401, false])
  })
  check(`${name} error of a stream`, async () => {
    const errors = []
    const parts = await partsOf(streamText(call({ say: 'Hi', finish: 'abort' }, { onError: ({ error }) => errors.push(error) })))
    assert.ok(parts.some((part) => part.type === 'error'))
    assert.equal(errors.length, 1)
  })
  check(`${name} finishReason length`, async () => {
    assert.equal((await generateText(call({ say: 'Hi', finish: 'length' }))).finishReason, 'length')
  })
  check(`${name} generateObject()`, async () => {
    const { object } = await generateObject(options(model, { say: JSON.stringify(ADA) }, { schema: Person }))
    assert.deepEqual(object, ADA)
  })
  check(`${name} generateObject() array and enum`, async () => {
    const array = await generateObject(options(model, { say: JSON.stringify({ elements: [ADA] }) }, { output: 'array', schema: Person }))
    assert.deepEqual(array.object, [ADA])
    const choice = await generateObject(options(model, { say: '{"result": "warm"}' }, { output: 'enum', enum: ['warm', 'cold'] }))
    assert.equal(choice.object, 'warm')
  })
  check(`${name} streamObject()`, async () => {
    const result = streamObject(options(model, { say: JSON.stringify(ADA) }, { schema: Person }))
    const seen = []
    for await (const partial of result.partialObjectStream) seen.push(partial)
    assert.deepEqual([await result.object, seen.at(-1)], [ADA, ADA])
  })
  check(`${name} Output.object()`, async () => {
    const { output } = await generateText(call({ say: JSON.stringify(ADA) }, { output: Output.object({ schema: Person }) }))
    assert.deepEqual(output, ADA)
  })
  check(`${name} ToolLoopAgent`, async () => {
    const agent = new ToolLoopAgent({ model, tools: { get_weather }, instructions: 'Be kind.' })
    const { text } = await agent.generate({ prompt: script({ turns: [{ calls: [ROME] }, { say: 'It is warm.' }] }) })
    assert.equal(text, 'It is warm.')
  })
}
