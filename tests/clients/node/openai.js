// OpenAI's client for Node.
import assert from 'node:assert/strict'
import OpenAI from 'openai'
import { zodResponseFormat } from 'openai/helpers/zod'
import { z } from 'zod'

const model = process.env.MODEL
const client = new OpenAI({ maxRetries: 0 })
const messages = [{ role: 'user', content: 'What is the weather in Rome?' }]
const parameters = { type: 'object', properties: { city: { type: 'string', maxLength: 20 } }, required: ['city'] }
const tool = { type: 'function', function: { name: 'get_weather', parameters } }

const chat = await client.chat.completions.create({ model, messages, max_tokens: 20 })
assert.ok(chat.choices[0].message.content)

let text = ''
for await (const chunk of await client.chat.completions.create({ model, messages, max_tokens: 20, stream: true })) {
  text += chunk.choices[0]?.delta.content ?? ''
}
assert.ok(text)

const called = await client.chat.completions.create({ model, messages, tools: [tool], tool_choice: 'required' })
assert.equal(called.choices[0].message.tool_calls[0].function.name, 'get_weather')
const streamed = client.chat.completions.stream({ model, messages, tools: [tool], tool_choice: 'required' })
assert.equal((await streamed.finalChatCompletion()).choices[0].message.tool_calls[0].function.name, 'get_weather')

const Person = z.object({ name: z.string(), age: z.number().int() })
const parsed = await client.chat.completions.parse({ model, messages, max_tokens: 400, response_format: zodResponseFormat(Person, 'person') })
assert.equal(typeof parsed.choices[0].message.parsed.age, 'number')

const embeddings = await client.embeddings.create({ model, input: ['Rome', 'Paris'] })
assert.equal(embeddings.data.length, 2)
await assert.rejects(client.chat.completions.create({ model: 'gpt-9', messages }), { status: 404, code: 'model_not_found' })
