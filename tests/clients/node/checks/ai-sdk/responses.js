// The default model of @ai-sdk/openai: the Responses API, with references to stored items.
import assert from 'node:assert/strict'
import { createOpenAI } from '@ai-sdk/openai'
import { generateText, stepCountIs, streamText, tool } from 'ai'
import { z } from 'zod'
import { check, ensureNamed, errorOf, fieldsOf, script } from '../../checklist.js'
import { ROME, SCRIPTED_MODEL, addCommonChecks, ignored, look, openai, options, report } from './models.js'

const model = openai(SCRIPTED_MODEL)
const thinks = (more = {}) => ({ providerOptions: { openai: { forceReasoning: true, reasoningSummary: 'auto', ...more } } })
addCommonChecks('openai', model, thinks())
addCommonChecks('openai without storing', model, thinks({ store: false }))

const ask = (option, value, turn = { say: 'Hi' }, more = {}) =>
  generateText(options(model, turn, { ...more, providerOptions: { openai: { [option]: value } } }))

check('responses.include', async () => assert.equal((await ask('include', ['reasoning.encrypted_content', 'file_search_call.results'])).text, 'Hi'))
check('responses.instructions', async () => {
  const { text } = await ask('instructions', 'Be kind.', { report: ['messages.0'] })
  assert.deepEqual(JSON.parse(text)['messages.0'], { role: 'system', content: 'Be kind.' })
})
check('responses.logprobs', async () => {
  const { providerMetadata } = await ask('logprobs', 2)
  assert.equal(providerMetadata.openai.logprobs[0][0].top_logprobs.length, 2)
})
check('responses.metadata', async () => assert.equal((await ask('metadata', { project: 'x' })).text, 'Hi'))
check('responses.parallelToolCalls', async () => {
  const { text } = await ask('parallelToolCalls', false, { report: ['parallel_tool_calls'] }, { tools: { look } })
  assert.equal(JSON.parse(text).parallel_tool_calls, false)
})
check(['responses.reasoningEffort', 'responses.forceReasoning'], async () => {
  assert.equal(await report(model, 'reasoning_effort', thinks({ reasoningEffort: 'low' })), 'low')
})
check('responses.reasoningSummary', async () => {
  assert.equal((await generateText(options(model, { think: 'Well.', say: 'Hi' }, thinks()))).reasoningText, 'Well.')
})
check('responses.reasoningEffortUpdate', async () => {
  const update = { role: 'user', content: script({ report: ['reasoning_effort'] }), providerOptions: { openai: { reasoningEffortUpdate: 'high' } } }
  const messages = [{ role: 'user', content: 'Hi' }, { role: 'assistant', content: 'Hello' }, update]
  const { text } = await generateText({ model, maxRetries: 0, messages, ...thinks({ reasoningEffort: 'low' }) })
  assert.ok(['low', 'high'].includes(JSON.parse(text).reasoning_effort))
})
check('responses.store', async () => {
  for (const store of [true, false]) assert.equal((await ask('store', store)).text, 'Hi')
})
check('responses.strictJsonSchema', async () => assert.equal((await ask('strictJsonSchema', false)).text, 'Hi'))
check('responses.textVerbosity', async () => assert.equal((await ask('textVerbosity', 'low')).text, 'Hi'))
check('responses.textFormat', async () => assert.equal((await ask('textFormat', { type: 'text' })).text, 'Hi'))
check('responses.systemMessageMode', async () => {
  const more = { system: 'Be kind.', providerOptions: { openai: { systemMessageMode: 'developer' } } }
  assert.equal((await report(model, 'messages.0', more)).content, 'Be kind.')
})
check('responses.allowedTools', async () => {
  const more = { tools: { get_weather: look, other: look }, providerOptions: { openai: { allowedTools: { toolNames: ['other'] } } } }
  const [only, ...rest] = await report(model, 'tools', more)
  assert.deepEqual([only.function.name, rest], ['other', []])
})
check('responses.passThroughUnsupportedFiles', async () => {
  const messages = [{ role: 'user', content: [{ type: 'file', data: 'AAAA', mediaType: 'text/csv', filename: 'a.csv' }] }]
  const error = await errorOf(generateText({ model, maxRetries: 0, messages, providerOptions: { openai: { passThroughUnsupportedFiles: true } } }))
  assert.match(error.message, /files are not supported/)
})
for (const [option, value, field] of [
  ['user', 'ada', 'user'],
  ['maxToolCalls', 3, 'max_tool_calls'],
  ['promptCacheKey', 'agent', 'prompt_cache_key'],
  ['promptCacheOptions', { mode: 'implicit' }, 'prompt_cache_options'],
  ['promptCacheRetention', '24h', 'prompt_cache_retention'],
  ['safetyIdentifier', 'ada', 'safety_identifier'],
  ['serviceTier', 'default', 'service_tier'],
  ['truncation', 'auto', 'truncation'],
]) {
  check(`responses.${option}`, async () => {
    const result = await ask(option, value)
    assert.ok(ignored(result).includes(field), ignored(result).join())
  })
}
for (const [option, value, field] of [
  ['reasoningMode', 'standard', 'reasoning.mode'],
  ['reasoningContext', 'all_turns', 'reasoning.context'],
]) {
  check(`responses.${option}`, async () => {
    const result = await generateText(options(model, { say: 'Hi' }, thinks({ [option]: value })))
    assert.ok(ignored(result).includes(field), ignored(result).join())
  })
}
for (const [option, value] of Object.entries({ previousResponseId: 'resp_1', conversation: 'conv_1' })) {
  check(`responses.${option}`, async () => {
    const error = await errorOf(ask(option, value))
    assert.match(error.message, /whole conversation as input/)
  })
}

// Tools of the provider.
check('openai.tools.customTool()', async () => {
  const patch = openai.tools.customTool({ name: 'patch', description: 'Edits files.', execute: async (text) => `applied ${text}` })
  const result = await generateText(options(model, { calls: [['patch', { input: 'x' }]] }, { tools: { patch }, stopWhen: stepCountIs(2) }))
  assert.equal(result.text, 'Results: applied x; images: 0')
})
for (const [name, type, args] of [
  ['applyPatch', 'apply_patch', {}],
  ['codeInterpreter', 'code_interpreter', {}],
  ['fileSearch', 'file_search', { vectorStoreIds: ['vs_1'] }],
  ['imageGeneration', 'image_generation', {}],
  ['localShell', 'local_shell', {}],
  ['shell', 'shell', {}],
  ['webSearchPreview', 'web_search_preview', {}],
  ['webSearch', 'web_search', {}],
  ['mcp', 'mcp', { serverLabel: 'x', serverUrl: 'https://example.org' }],
  ['toolSearch', 'tool_search', {}],
]) {
  check(`openai.tools.${name}()`, async () => {
    const tools = { get_weather: look, [type]: openai.tools[name](args) }
    const result = await generateText(options(model, { report: ['tools'] }, { tools }))
    assert.deepEqual(JSON.parse(result.text).tools.map((each) => each.function.name), ['get_weather'])
    assert.ok(ignored(result).includes(`tools[${type}]`), ignored(result).join())
  })
}
ensureNamed('openai.tools', Object.keys(openai.tools).map((name) => `${name}()`))

// Later turns refer to the items of earlier ones.
check('item references', async () => {
  const inputs = []
  const recording = createOpenAI({
    baseURL: process.env.OPENAI_BASE_URL,
    fetch: (url, init) => {
      inputs.push(JSON.parse(init.body).input)
      return fetch(url, init)
    },
  })
  const run = tool({ inputSchema: z.object({ city: z.string() }), execute: async () => '18' })
  const more = { tools: { get_weather: run }, stopWhen: stepCountIs(2), ...thinks() }
  const result = streamText(options(recording(SCRIPTED_MODEL), { think: 'Well.', say: 'Wait.', calls: [ROME] }, more))
  assert.equal(await result.text, 'Results: 18; images: 0')
  const kinds = ['user', 'item_reference', 'item_reference', 'function_call', 'function_call_output']
  assert.deepEqual(inputs[1].map((item) => item.type ?? item.role), kinds)
})
check('a conversation over several calls', async () => {
  const first = await generateText(options(model, { think: 'Well.', say: 'Hello' }, thinks()))
  const messages = [{ role: 'user', content: 'Hi' }, ...first.response.messages, { role: 'user', content: script({ report: ['messages.1'] }) }]
  const { text } = await generateText({ model, maxRetries: 0, messages, ...thinks() })
  assert.equal(JSON.parse(text)['messages.1'].content, 'Hello')
})

ensureNamed('responses', fieldsOf('@ai-sdk/openai/dist/index.d.ts', 'openaiLanguageModelResponsesOptionsSchema'))
