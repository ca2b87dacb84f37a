// Anthropic's client for Node.
import assert from 'node:assert/strict'
import Anthropic from '@anthropic-ai/sdk'

const model = process.env.MODEL
const client = new Anthropic({ maxRetries: 0 })
const messages = [{ role: 'user', content: 'What is the weather in Rome?' }]
const input_schema = { type: 'object', properties: { city: { type: 'string', maxLength: 20 } }, required: ['city'] }
const tools = [{ name: 'get_weather', input_schema }]

const chat = await client.messages.create({ model, messages, max_tokens: 20, system: 'Be brief.' })
assert.ok(chat.content[0].text)
assert.ok(chat.usage.output_tokens > 0)

let text = ''
const stream = client.messages.stream({ model, messages, max_tokens: 20 }).on('text', (piece) => (text += piece))
assert.equal((await stream.finalMessage()).content[0].text, text)

const called = await client.messages.create({ model, messages, max_tokens: 100, tools, tool_choice: { type: 'any' } })
assert.equal(called.stop_reason, 'tool_use')
const use = called.content.at(-1)
assert.ok(use.input.city)
const result = { type: 'tool_result', tool_use_id: use.id, content: '18 degrees' }
const answered = [...messages, { role: 'assistant', content: called.content }, { role: 'user', content: [result] }]
await client.messages.create({ model, messages: answered, max_tokens: 20, tools })
assert.ok((await client.messages.countTokens({ model, messages })).input_tokens > 0)
await assert.rejects(client.messages.create({ model: 'claude-9', messages, max_tokens: 5 }), { status: 404, type: 'not_found_error' })
