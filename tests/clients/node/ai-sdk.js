// Vercel's AI SDK.
import assert from 'node:assert/strict'
import { createOpenAICompatible } from '@ai-sdk/openai-compatible'
import { embedMany, generateObject, generateText, streamText, tool } from 'ai'
import { z } from 'zod'

const provider = createOpenAICompatible({
  name: 'mesh',
  baseURL: process.env.OPENAI_BASE_URL,
  apiKey: process.env.OPENAI_API_KEY,
  supportsStructuredOutputs: true,
})
const model = provider(process.env.MODEL)
const more = { model, maxRetries: 0, maxOutputTokens: 200 }

assert.ok((await generateText({ ...more, prompt: 'Say hello.' })).text)
let text = ''
for await (const piece of streamText({ ...more, prompt: 'Say hello.' }).textStream) text += piece
assert.ok(text)

const get_weather = tool({ description: 'Says the weather.', inputSchema: z.object({ city: z.string() }) })
const called = await generateText({ ...more, prompt: 'What is the weather in Rome?', tools: { get_weather }, toolChoice: 'required' })
assert.equal(called.toolCalls[0].toolName, 'get_weather')
const streamed = streamText({ ...more, prompt: 'What is the weather in Rome?', tools: { get_weather }, toolChoice: 'required' })
assert.equal((await streamed.toolCalls)[0].toolName, 'get_weather')

const person = await generateObject({ ...more, prompt: 'Describe a person.', schema: z.object({ age: z.number().int() }) })
assert.equal(typeof person.object.age, 'number')
const { embeddings } = await embedMany({ model: provider.textEmbeddingModel(process.env.MODEL), values: ['Rome', 'Paris'] })
assert.equal(embeddings.length, 2)

// Guardrails of the key mask every word of an answer, or end it before the first one.
const withKey = (apiKey) => createOpenAICompatible({ name: 'mesh', baseURL: process.env.OPENAI_BASE_URL, apiKey })(process.env.MODEL)
const short = { maxRetries: 0, maxOutputTokens: 40, prompt: 'Say hello.' }
const masked = { ...short, model: withKey(process.env.MASKED_API_KEY) }
for (const shown of [(await generateText(masked)).text, await streamText(masked).text]) {
  assert.match(shown, /\[word\]/)
  assert.doesNotMatch(shown.replaceAll('[word]', ''), /[A-Za-z]{2}/)
}
const refused = { ...short, model: withKey(process.env.REFUSED_API_KEY) }
const whole = await generateText(refused)
const cut = streamText(refused)
assert.doesNotMatch(whole.text + (await cut.text), /[A-Za-z]{2}/)
assert.deepEqual([whole.finishReason, await cut.finishReason], ['content-filter', 'content-filter'])
