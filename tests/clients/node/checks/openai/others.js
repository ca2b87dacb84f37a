// Completions, embeddings, models and moderations, and how errors look.
import assert from 'node:assert/strict'
import OpenAI from 'openai'
import { check, ensureNamed, errorOf, fieldsOf } from '../../checklist.js'
import { MODEL, SCRIPTED_MODEL, chat, client, hasNoEffect, isRefused, works } from './client.js'

// Completions, which only the model of the mesh's own engine continues.
const complete = (fields) => client.completions.create({ model: MODEL, prompt: 'One, two,', max_tokens: 3, temperature: 0, ...fields })
const ACCEPTED = { temperature: 0.5, top_p: 0.5, frequency_penalty: 0.5, presence_penalty: 0.5, logit_bias: { 42: -50 }, seed: 7 }
for (const [name, value] of Object.entries(ACCEPTED)) {
  check(`completions.${name}`, async () => assert.ok((await works(complete, { [name]: value })).choices[0].text))
}
check(['completions.model', 'completions.prompt'], async () => {
  const answer = await works(complete, { prompt: ['One, two,', 'Red, green,'] })
  assert.deepEqual([answer.model, answer.choices.length], [MODEL, 2])
})
check('completions.max_tokens', async () => assert.equal((await works(complete, { max_tokens: 2 })).usage.completion_tokens, 2))
check(['completions.n', 'completions.best_of'], async () => assert.equal((await works(complete, { n: 2, best_of: 2 })).choices.length, 2))
check('completions.echo', async () => assert.ok((await works(complete, { echo: true })).choices[0].text.startsWith('One, two,')))
check('completions.logprobs', async () => assert.equal((await works(complete, { logprobs: 2 })).choices[0].logprobs.tokens.length, 3))
check('completions.stop', async () => assert.ok(!(await works(complete, { stop: [','], max_tokens: 20 })).choices[0].text.includes(',')))
// The default model was not trained to fill gaps.
check('completions.suffix', () => isRefused(complete, 'cannot fill gaps', { suffix: 'three' }))
check('completions.user', () => hasNoEffect(complete, 'user', { user: 'ada' }))
check(['completions.stream', 'completions.stream_options'], async () => {
  const chunks = []
  for await (const chunk of await complete({ stream: true, stream_options: { include_usage: true } })) chunks.push(chunk)
  assert.ok(chunks[0].choices[0].text)
  assert.equal(chunks.at(-1).usage.completion_tokens, 3)
})
ensureNamed('completions', fieldsOf('openai/resources/completions.d.ts', 'CompletionCreateParamsBase'))

// Embeddings.
const embed = (fields) => client.embeddings.create({ model: MODEL, input: 'Rome', ...fields })
check(['embeddings.model', 'embeddings.input'], async () => {
  assert.equal((await works(embed, { input: ['Rome', 'Paris'] })).data.length, 2)
  assert.equal((await works(embed, { input: [[1, 2, 3], [4]] })).data.length, 2)
})
check('embeddings.encoding_format', async () => {
  const [numbers, packed] = [await works(embed, { encoding_format: 'float' }), await works(embed, { encoding_format: 'base64' })]
  assert.equal(Buffer.from(packed.data[0].embedding, 'base64').length, 4 * numbers.data[0].embedding.length)
})
check('embeddings.dimensions', async () => assert.equal((await works(embed, { dimensions: 16 })).data[0].embedding.length, 16))
check('embeddings.user', () => hasNoEffect(embed, 'user', { user: 'ada' }))
ensureNamed('embeddings', fieldsOf('openai/resources/embeddings.d.ts', 'EmbeddingCreateParams'))

// Moderations and models.
check(['moderations.model', 'moderations.input'], async () => {
  const { results } = await client.moderations.create({ model: 'moderation', input: ['be kind', 'hurt them'] })
  assert.deepEqual(results.map(({ flagged, categories }) => [flagged, categories.violence]), [
    [false, false],
    [true, true],
  ])
})
check('moderations.input image_url', () =>
  isRefused((fields) => client.moderations.create(fields), 'input', { input: [{ type: 'image_url', image_url: { url: 'data:image/png;base64,AAAA' } }] }),
)
ensureNamed('moderations', fieldsOf('openai/resources/moderations.d.ts', 'ModerationCreateParams'))
check('models.list()', async () => {
  const names = []
  for await (const model of client.models.list()) names.push(model.id)
  assert.ok(names.includes(MODEL) && names.includes(SCRIPTED_MODEL))
})
check('models.retrieve()', async () => {
  assert.equal((await client.models.retrieve(SCRIPTED_MODEL)).id, SCRIPTED_MODEL)
  assert.ok((await errorOf(client.models.retrieve('gpt-9'))) instanceof OpenAI.NotFoundError)
})

// Files.
check(['files.create()', 'files.retrieve()', 'files.content()', 'files.delete()'], async () => {
  const file = await OpenAI.toFile(Buffer.from('0123456789'), 'größe.txt')
  const expires_after = { anchor: 'created_at', seconds: 3600 }
  const made = await client.files.create({ file, purpose: 'user_data', expires_after })
  assert.deepEqual([made.bytes, made.filename, made.expires_at - made.created_at], [10, 'größe.txt', 3600])
  assert.deepEqual(await client.files.retrieve(made.id), made)
  assert.equal(await (await client.files.content(made.id)).text(), '0123456789')
  assert.ok((await client.files.delete(made.id)).deleted)
  assert.ok((await errorOf(client.files.retrieve(made.id))) instanceof OpenAI.NotFoundError)
})
check('files.list()', async () => {
  const made = []
  for (const name of ['a', 'b', 'c']) {
    made.push((await client.files.create({ file: await OpenAI.toFile(Buffer.from(name), name), purpose: 'evals' })).id)
  }
  const listed = []
  for await (const file of client.files.list({ purpose: 'evals', limit: 2, order: 'asc' })) listed.push(file.id)
  assert.deepEqual(listed, made)
  for (const id of made) await client.files.delete(id)
})

// Errors and options of the client.
check('AuthenticationError', async () => {
  const error = await errorOf(client.withOptions({ apiKey: 'wrong' }).models.list())
  assert.ok(error instanceof OpenAI.AuthenticationError)
  assert.deepEqual([error.code, error.status], ['invalid_api_key', 401])
})
check('BadRequestError', async () => {
  const error = await errorOf(client.chat.completions.create({ model: SCRIPTED_MODEL, messages: [] }))
  assert.deepEqual([error.param, error.type, Boolean(error.requestID)], ['messages', 'invalid_request_error', true])
})
check('context_length_exceeded', async () => {
  const messages = [{ role: 'user', content: 'word '.repeat(50_000) }]
  assert.equal((await errorOf(client.chat.completions.create({ model: MODEL, messages }))).code, 'context_length_exceeded')
})
check('defaultHeaders', async () => {
  const strict = client.withOptions({ defaultHeaders: { 'x-aimesh-strict': '1' } })
  assert.equal((await errorOf(strict.embeddings.create({ model: MODEL, input: 'Rome', next_year: 1 }))).param, 'next_year')
})
check('idempotency of a retry', async () => {
  const headers = { 'Idempotency-Key': 'openai-node-1' }
  const [first, again] = [await client.chat.completions.create(chat({ say: 'Hi' }), { headers }), await client.chat.completions.create(chat({ say: 'Hi' }), { headers })]
  assert.deepEqual(again.choices, first.choices)
})
check('client.post()', async () => assert.equal((await client.post('/tokenize', { body: { model: MODEL, prompt: 'Hi' } })).count, 1))
