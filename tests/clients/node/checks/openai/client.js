// The client, and how a field is checked.
import assert from 'node:assert/strict'
import OpenAI from 'openai'
import { z } from 'zod'
import { errorOf, script } from '../../checklist.js'

export const client = new OpenAI({ maxRetries: 0 })
export const { MODEL, SCRIPTED_MODEL } = process.env
// A red pixel.
export const PNG =
  'data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mP8z8DwHwAFBQIAX8jx0gAAAABJRU5ErkJggg=='
export const PARAMETERS = { type: 'object', properties: { city: { type: 'string' } }, required: ['city'], additionalProperties: false }
// Fields without effect, in chats and responses.
export const NO_EFFECT = {
  user: 'ada',
  safety_identifier: 'ada',
  prompt_cache_key: 'agent',
  prompt_cache_retention: '24h',
  prompt_cache_options: { ttl: '30m' },
}
export const ROME = ['get_weather', { city: 'Rome' }]
export const Person = z.object({ name: z.string(), age: z.number().int() })
export const ADA = { name: 'Ada', age: 36 }

/** Return the fields of requests to the scripted model. */
export const chat = (turn, ...messages) => ({ model: SCRIPTED_MODEL, messages: [...messages, { role: 'user', content: script(turn) }] })
export const response = (turn, ...items) => ({ model: SCRIPTED_MODEL, input: [...items, { role: 'user', content: script(turn) }] })

/** Send fields that have an effect, and return the answer. */
export async function works(create, fields) {
  const { data, response } = await create(fields).withResponse()
  assert.equal(response.headers.get('x-aimesh-ignored') ?? '', '')
  return data
}

/** Send a field that is ignored, and return the answer. */
export async function hasNoEffect(create, name, fields) {
  const { data, response } = await create(fields).withResponse()
  const ignored = response.headers.get('x-aimesh-ignored') ?? ''
  assert.ok(ignored.split(', ').includes(name), ignored)
  return data
}

/** Send a field that is refused with a sentence. */
export async function isRefused(create, sentence, fields, param) {
  const error = await errorOf(create(fields))
  assert.equal(error.status, 400)
  assert.ok(error.message.includes(sentence), error.message)
  if (param) assert.equal(error.param, param)
}
