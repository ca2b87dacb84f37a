// @ai-sdk/openai-compatible, and the chat model of @ai-sdk/openai.
import assert from 'node:assert/strict'
import { embed, embedMany, extractReasoningMiddleware, generateText, smoothStream, streamText, wrapLanguageModel } from 'ai'
import { check, ensureNamed, errorOf, fieldsOf } from '../../checklist.js'
import { MODEL, SCRIPTED_MODEL, addCommonChecks, compatible, get_weather, ignored, look, openai, options, partsOf, report } from './models.js'

const model = compatible(SCRIPTED_MODEL)
addCommonChecks('compatible', model)

/** Check an option of the provider that reaches the model. */
const reaches = (name, chat, api, option, value, field, there = value) =>
  check(`${name}.${option}`, async () => assert.deepEqual(await report(chat, field, { providerOptions: { [api]: { [option]: value } } }), there))
/** Check an option of the provider that is ignored. */
const isIgnored = (name, chat, api, option, value, field) =>
  check(`${name}.${option}`, async () => {
    const result = await generateText(options(chat, { say: 'Hi' }, { providerOptions: { [api]: { [option]: value } } }))
    assert.ok(ignored(result).includes(field), ignored(result).join())
  })

for (const [setting, value, field] of [
  ['presencePenalty', 0.5, 'presence_penalty'],
  ['frequencyPenalty', -0.5, 'frequency_penalty'],
  ['stopSequences', ['END'], 'stop'],
  ['seed', 7, 'seed'],
]) {
  check(`compatible ${setting}`, async () => assert.deepEqual(await report(model, field, { [setting]: value }), value))
}
reaches('compatible', model, 'mesh', 'reasoningEffort', 'low', 'reasoning_effort')
isIgnored('compatible', model, 'mesh', 'user', 'ada', 'user')
isIgnored('compatible', model, 'mesh', 'textVerbosity', 'low', 'verbosity')
check('compatible.strictJsonSchema', async () => {
  const { text } = await generateText(options(model, { say: 'Hi' }, { providerOptions: { mesh: { strictJsonSchema: false } } }))
  assert.equal(text, 'Hi')
})
check('compatible other options', async () => {
  const extra = { providerOptions: { mesh: { top_k: 5, next_year: 1 } } }
  assert.equal(await report(model, 'top_k', extra), 5)
  assert.deepEqual(ignored(await generateText(options(model, { say: 'Hi' }, extra))), ['next_year'])
})
check('compatible audio part', async () => {
  const messages = [{ role: 'user', content: [{ type: 'file', data: 'AAAA', mediaType: 'audio/wav' }] }]
  assert.match((await errorOf(generateText({ model, maxRetries: 0, messages }))).message, /audio and files are not supported/)
})
check('compatible context length', async () => {
  const error = await errorOf(generateText({ model: compatible(MODEL), maxRetries: 0, prompt: 'word '.repeat(50_000) }))
  assert.equal(JSON.parse(error.responseBody).error.code, 'context_length_exceeded')
})
check('compatible includeRawChunks', async () => {
  const parts = await partsOf(streamText(options(model, { say: 'Hi' }, { includeRawChunks: true })))
  assert.ok(parts.some((part) => part.type === 'raw' && part.rawValue.object === 'chat.completion.chunk'))
})
check('smoothStream()', async () => {
  assert.equal(await streamText(options(model, { say: 'Hi you' }, { experimental_transform: smoothStream({ delayInMs: null }) })).text, 'Hi you')
})
check('extractReasoningMiddleware()', async () => {
  const wrapped = wrapLanguageModel({ model, middleware: extractReasoningMiddleware({ tagName: 'think' }) })
  const { text, reasoningText } = await generateText(options(wrapped, { say: '<think>Well.</think>Hi' }))
  assert.deepEqual([text, reasoningText], ['Hi', 'Well.'])
})
check('toUIMessageStreamResponse()', async () => {
  const body = await streamText(options(model, { think: 'Well.', say: 'Hi' }, { tools: { get_weather } })).toUIMessageStreamResponse().text()
  for (const type of ['start', 'reasoning-delta', 'text-delta', 'finish']) assert.ok(body.includes(`"type":"${type}"`), type)
})
check('compatible completionModel()', async () => {
  const { text, usage } = await generateText({ model: compatible.completionModel(MODEL), maxRetries: 0, prompt: 'One, two,', maxOutputTokens: 3 })
  assert.ok(text)
  assert.equal(usage.outputTokens, 3)
})
check('embed() and embedMany()', async () => {
  for (const provider of [compatible, openai]) {
    const embedder = provider.textEmbeddingModel(MODEL)
    const [one, many] = [await embed({ model: embedder, value: 'Rome' }), await embedMany({ model: embedder, values: ['Rome', 'Paris'] })]
    assert.equal(many.embeddings.length, 2)
    assert.equal(one.embedding.length, many.embeddings[0].length)
    assert.ok(many.usage.tokens > one.usage.tokens)
  }
})
check('embedding options', async () => {
  const providerOptions = { openai: { dimensions: 16, user: 'ada' } }
  const { embedding } = await embed({ model: openai.textEmbeddingModel(MODEL), value: 'Rome', providerOptions })
  assert.equal(embedding.length, 16)
})
ensureNamed('compatible', fieldsOf('@ai-sdk/openai-compatible/dist/index.d.ts', 'openaiCompatibleLanguageModelChatOptions'))

// Without `forceReasoning`, only names of OpenAI's models have thoughts.
const chat = openai.chat(SCRIPTED_MODEL)
reaches('openai.chat', chat, 'openai', 'reasoningEffort', 'high', 'reasoning_effort')
reaches('openai.chat', chat, 'openai', 'logitBias', { 42: -50 }, 'logit_bias')
reaches('openai.chat', chat, 'openai', 'maxCompletionTokens', 55, 'max_tokens')
reaches('openai.chat', chat, 'openai', 'systemMessageMode', 'developer', 'messages.0.role', 'user')
reaches('openai.chat', chat, 'openai', 'forceReasoning', true, 'temperature', null)
check('openai.chat.parallelToolCalls', async () => {
  const more = { tools: { look }, providerOptions: { openai: { parallelToolCalls: false } } }
  assert.equal(await report(chat, 'parallel_tool_calls', more), false)
})
check('openai.chat.logprobs', async () => {
  const { providerMetadata } = await generateText(options(chat, { say: 'Hi' }, { providerOptions: { openai: { logprobs: 2 } } }))
  assert.equal(providerMetadata.openai.logprobs[0].top_logprobs.length, 2)
})
check('openai.chat.strictJsonSchema', async () => {
  const result = await generateText(options(chat, { say: 'Hi' }, { tools: { look }, providerOptions: { openai: { strictJsonSchema: false } } }))
  assert.equal(result.text, 'Hi')
})
check('openai.chat.metadata', async () => {
  const { text } = await generateText(options(chat, { say: 'Hi' }, { providerOptions: { openai: { metadata: { conversation_id: 'c1' } } } }))
  assert.equal(text, 'Hi')
})
for (const [option, value, field] of [
  ['user', 'ada', 'user'],
  ['store', true, 'store'],
  ['prediction', { type: 'content', content: 'Hi' }, 'prediction'],
  ['serviceTier', 'default', 'service_tier'],
  ['textVerbosity', 'low', 'verbosity'],
  ['promptCacheKey', 'agent', 'prompt_cache_key'],
  ['promptCacheOptions', { mode: 'implicit' }, 'prompt_cache_options'],
  ['promptCacheRetention', '24h', 'prompt_cache_retention'],
  ['safetyIdentifier', 'ada', 'safety_identifier'],
]) {
  isIgnored('openai.chat', chat, 'openai', option, value, field)
}
ensureNamed('openai.chat', fieldsOf('@ai-sdk/openai/dist/index.d.ts', 'openaiLanguageModelChatOptions'))
