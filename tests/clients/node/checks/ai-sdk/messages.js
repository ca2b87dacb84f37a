// @ai-sdk/anthropic.
import assert from 'node:assert/strict'
import { generateText, streamText } from 'ai'
import { check, ensureNamed, errorOf, fieldsOf, script } from '../../checklist.js'
import { ADA, PNG, Person, SCRIPTED_MODEL, addCommonChecks, anthropic, look, options, partsOf, report } from './models.js'
import { generateObject } from 'ai'

const model = anthropic(SCRIPTED_MODEL)
const withOptions = (more) => ({ maxOutputTokens: 4000, providerOptions: { anthropic: more } })
addCommonChecks('anthropic', model, withOptions({ thinking: { type: 'adaptive' } }))

check('anthropic topK', async () => assert.equal(await report(model, 'top_k', { topK: 5 }), 5))
check('anthropic stopSequences', async () => assert.deepEqual(await report(model, 'stop', { stopSequences: ['END'] }), ['END']))
check('anthropic.thinking', async () => {
  for (const [thinking, effort] of [
    [{ type: 'enabled', budgetTokens: 1024 }, 'low'],
    [{ type: 'disabled' }, 'none'],
  ]) {
    assert.equal(await report(model, 'reasoning_effort', withOptions({ thinking })), effort)
  }
  const parts = await partsOf(streamText(options(model, { think: 'Well.', say: 'Hi' }, withOptions({ thinking: { type: 'adaptive', display: 'omitted' } }))))
  assert.ok(!parts.some((part) => part.type === 'reasoning-delta' && part.text))
})
check('anthropic.effort', async () => {
  assert.equal(await report(model, 'reasoning_effort', withOptions({ effort: 'high', thinking: { type: 'adaptive' } })), 'high')
})
check('anthropic.disableParallelToolUse', async () => {
  assert.equal(await report(model, 'parallel_tool_calls', { tools: { look }, ...withOptions({ disableParallelToolUse: true }) }), false)
})
check('anthropic.structuredOutputMode', async () => {
  for (const [structuredOutputMode, turn] of [
    ['outputFormat', { say: JSON.stringify(ADA) }],
    ['jsonTool', { calls: [['json', ADA]] }],
  ]) {
    const { object } = await generateObject(options(model, turn, { schema: Person, ...withOptions({ structuredOutputMode }) }))
    assert.deepEqual(object, ADA)
  }
})
check('anthropic.sendReasoning', async () => {
  const first = await generateText(options(model, { think: 'Well.', say: 'Hello' }, withOptions({ thinking: { type: 'adaptive' } })))
  const messages = [{ role: 'user', content: 'Hi' }, ...first.response.messages, { role: 'user', content: script({ report: ['messages.1'] }) }]
  for (const sendReasoning of [true, false]) {
    const { text } = await generateText({ model, maxRetries: 0, messages, ...withOptions({ sendReasoning }) })
    assert.equal(JSON.parse(text)['messages.1'].content, 'Hello')
  }
})
for (const [option, value] of Object.entries({
  cacheControl: { type: 'ephemeral', ttl: '1h' },
  metadata: { userId: 'ada' },
  mcpServers: [{ type: 'url', name: 'docs', url: 'https://example.org/mcp' }],
  container: { id: 'container_1' },
  toolStreaming: false,
  taskBudget: { type: 'tokens', total: 20_000 },
  speed: 'fast',
  inferenceGeo: 'us',
  fallbacks: [{ model: 'claude-sonnet-4-5' }],
  anthropicBeta: ['context-1m-2025-08-07'],
  safeguards: [{ type: 'dangerous_tool_use' }],
  contextManagement: { edits: [{ type: 'clear_tool_uses_20250919' }] },
})) {
  check(`anthropic.${option}`, async () => {
    const { text } = await generateText(options(model, { say: 'Hi' }, { tools: { look }, ...withOptions({ [option]: value }) }))
    assert.equal(text, 'Hi')
  })
}
check('anthropic cacheControl of a part', async () => {
  const cached = { providerOptions: { anthropic: { cacheControl: { type: 'ephemeral' } } } }
  const messages = [
    { role: 'system', content: 'Be kind.', ...cached },
    { role: 'user', content: [{ type: 'text', text: script({ report: ['messages.0'] }), ...cached }] },
  ]
  const { text } = await generateText({ model, maxRetries: 0, messages, allowSystemInMessages: true })
  assert.equal(JSON.parse(text)['messages.0'].content, 'Be kind.')
})
check('anthropic text file part', async () => {
  const content = [
    { type: 'file', data: Buffer.from('A note.').toString('base64'), mediaType: 'text/plain', filename: 'note.txt' },
    { type: 'image', image: PNG, mediaType: 'image/png' },
    { type: 'text', text: script({ report: ['messages.0.content'] }) },
  ]
  const { text } = await generateText({ model, maxRetries: 0, messages: [{ role: 'user', content }] })
  assert.match(JSON.parse(text)['messages.0.content'][0].text, /A note\./)
})
check('anthropic image URL', async () => {
  const messages = [{ role: 'user', content: [{ type: 'image', image: new URL('https://example.org/a.png') }] }]
  assert.match((await errorOf(generateText({ model, maxRetries: 0, messages }))).message, /is a URL/)
})
const ARGUMENTS = { computer: { displayWidthPx: 100, displayHeightPx: 100 }, textEditor: { maxCharacters: 1000 }, advisor: { model: 'claude-opus-4-6' } }
for (const name of Object.keys(anthropic.tools)) {
  check(`anthropic.tools.${name}()`, async () => {
    const offered = anthropic.tools[name](ARGUMENTS[name.split(/_|Toolset/)[0]] ?? {})
    const { text } = await generateText(options(model, { report: ['tools'] }, { tools: { get_weather: look, theirs: offered } }))
    assert.deepEqual(JSON.parse(text).tools.map((each) => each.function.name), ['get_weather'])
  })
}
ensureNamed('anthropic', fieldsOf('@ai-sdk/anthropic/dist/index.d.ts', 'anthropicLanguageModelOptions'))
