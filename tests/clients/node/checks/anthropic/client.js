// The client, and how a field is checked.
import assert from 'node:assert/strict'
import { readFileSync } from 'node:fs'
import Anthropic from '@anthropic-ai/sdk'
import { z } from 'zod'
import { check, errorOf, script } from '../../checklist.js'

export const client = new Anthropic({ maxRetries: 0 })
export const { MODEL, SCRIPTED_MODEL } = process.env
export const TYPES = '@anthropic-ai/sdk/resources/messages/messages.d.ts'
export const BETA_TYPES = '@anthropic-ai/sdk/resources/beta/messages/messages.d.ts'
// A red pixel.
export const PNG = 'iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mP8z8DwHwAFBQIAX8jx0gAAAABJRU5ErkJggg=='
export const IMAGE = { type: 'image', source: { type: 'base64', media_type: 'image/png', data: PNG } }
export const PARAMETERS = { type: 'object', properties: { city: { type: 'string' } }, required: ['city'], additionalProperties: false }
export const TOOL = { name: 'get_weather', description: 'Says the weather.', input_schema: PARAMETERS }
export const ROME = ['get_weather', { city: 'Rome' }]
export const HELLO = { say: 'Hello you.' }
export const EVERYTHING = { think: 'Let me see.', say: 'One moment.', calls: [ROME] }
export const Person = z.object({ name: z.string(), age: z.number().int() })
export const ADA = { name: 'Ada', age: 36 }

export const text = (content) => ({ type: 'text', text: content })
export const user = (...content) => ({ role: 'user', content })
export const assistant = (...content) => ({ role: 'assistant', content })

/** Return the fields of a request to the scripted model. */
export const said = (turn, ...messages) => ({
  model: SCRIPTED_MODEL,
  max_tokens: 500,
  messages: [...messages, { role: 'user', content: script(turn) }],
})
export const everything = { ...said(EVERYTHING), tools: [TOOL], thinking: { type: 'adaptive' } }

export const plain = (fields) => client.messages.create(fields)
export const beta = (fields) => client.beta.messages.create(fields)

/** Send fields of which only `ignores` has no effect, and return the answer. */
export async function ask(fields, { create = plain, ignores = [] } = {}) {
  const { data, response } = await create({ ...said(HELLO), ...fields }).withResponse()
  const ignored = (response.headers.get('x-aimesh-ignored') ?? '').split(', ').filter(Boolean)
  assert.deepEqual(ignored.sort(), [...ignores].sort())
  return data
}

/** Return what reached the model of a field of the chat. */
export async function report(path, fields = {}, options = {}, ...messages) {
  const answer = await ask({ ...said({ report: [path] }, ...messages), ...fields }, options)
  return JSON.parse(answer.content.at(-1).text)[path]
}

/** Send fields that are refused with a sentence. */
export async function isRefused(sentence, fields, create = plain) {
  const error = await errorOf(create({ ...said(HELLO), ...fields }))
  assert.deepEqual([error.status, error.type, error.error.type], [400, 'invalid_request_error', 'error'])
  assert.ok(error.message.includes(sentence), error.message)
}

/** Add a check that a field is ignored, and named so. */
export function isIgnored(api, name, fields, create = plain) {
  check(`${api}.${name}`, async () => {
    assert.equal((await ask(fields, { create, ignores: [name] })).content[0].text, HELLO.say)
  })
}

/** Return the texts of a union in the client's declarations. */
export function literalsOf(file, union) {
  const declared = new RegExp(`\\nexport type ${union} = ([^;]+);`).exec(readFileSync(`node_modules/${file}`, 'utf8'))[1]
  return [...declared.matchAll(/'(\w+)'/g)].map((match) => match[1])
}
