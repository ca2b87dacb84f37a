// Batches, responses in the background, and webhooks.
import assert from 'node:assert/strict'
import { createServer } from 'node:http'
import OpenAI from 'openai'
import { check, ensureNamed, errorOf, fieldsOf, script } from '../../checklist.js'
import { SCRIPTED_MODEL, client, hasNoEffect, works } from './client.js'

// Lines and responses in the background wait for an idle machine.
const END_MS = 60_000
const CHATS = '/v1/chat/completions'

async function until(read, isIt) {
  for (const endsAt = Date.now() + END_MS; ; ) {
    const found = await read()
    if (isIt(found)) return found
    assert.ok(Date.now() < endsAt, JSON.stringify(found))
    await new Promise((resolve) => setTimeout(resolve, 200))
  }
}

// Batches.
const create = (fields) => client.batches.create({ endpoint: CHATS, completion_window: '24h', ...fields })
const upload = async (text) => (await client.files.create({ file: await OpenAI.toFile(Buffer.from(text), 'lines.jsonl'), purpose: 'batch' })).id
/** Begin a batch whose answers say this; without a text, the line is refused. */
async function order(says, fields = {}) {
  const lines = says.map((say, number) => {
    const body = { model: SCRIPTED_MODEL, messages: say ? [{ role: 'user', content: script({ say }) }] : [] }
    return JSON.stringify({ custom_id: `line ${number}`, method: 'POST', url: CHATS, body })
  })
  return works(create, { input_file_id: await upload(lines.join('\n')), ...fields })
}
const ended = ({ id }) =>
  until(
    () => client.batches.retrieve(id),
    ({ status }) => ['completed', 'failed', 'expired', 'cancelled'].includes(status),
  )
const linesOf = async (file) => (await (await client.files.content(file)).text()).trim().split('\n').map(JSON.parse)
const BATCH = ['create()', 'retrieve()', 'input_file_id', 'endpoint', 'completion_window'].map((name) => `batches.${name}`)
check(BATCH, async () => {
  const batch = await ended(await order(['One.', 'Two.', '']))
  assert.deepEqual([batch.status, batch.request_counts], ['completed', { total: 3, completed: 2, failed: 1 }])
  const said = (await linesOf(batch.output_file_id)).map((line) => [line.custom_id, line.response.body.choices[0].message.content])
  assert.deepEqual(said, [
    ['line 0', 'One.'],
    ['line 1', 'Two.'],
  ])
  const [refused] = await linesOf(batch.error_file_id)
  assert.deepEqual([refused.response.status_code, refused.response.body.error.param], [400, 'messages'])
})
check(['batches.metadata', 'batches.list()'], async () => {
  const first = await order(['Hi.'])
  const second = await order(['Hi.'], { metadata: { number: '2' } })
  const listed = []
  for await (const { id } of client.batches.list({ limit: 1 })) if (listed.push(id) === 2) break
  assert.deepEqual(listed, [second.id, first.id])
  assert.deepEqual((await ended(second)).metadata, { number: '2' })
})
check('batches.output_expires_after', async () => {
  const { input_file_id } = await order(['Hi.'])
  await hasNoEffect(create, 'output_expires_after', { input_file_id, output_expires_after: { anchor: 'created_at', seconds: 3600 } })
})
check('batches.cancel()', async () => {
  const made = await order(Array(500).fill('Hi.'))
  // While it is validated, it has no lines.
  await until(() => client.batches.retrieve(made.id), ({ status }) => status === 'in_progress')
  await client.batches.cancel(made.id)
  const batch = await ended(made)
  assert.equal(batch.status, 'cancelled')
  assert.ok((await linesOf(batch.error_file_id)).every(({ error }) => error.code === 'batch_cancelled'))
})
check('batches.create() refused', async () => {
  const batch = await ended(await create({ input_file_id: await upload('{"custom_id": "1"}\nnot JSON') }))
  assert.deepEqual([batch.status, batch.errors.data.map(({ code }) => code)], ['failed', ['invalid_method', 'invalid_json_line']])
})
ensureNamed('batches', fieldsOf('openai/resources/batches.d.ts', 'BatchCreateParams'))

// Responses in the background.
const inBackground = (say) => works((fields) => client.responses.create(fields), { model: SCRIPTED_MODEL, input: script({ say }), background: true })
const hasEnded = ({ status }) => !['queued', 'in_progress'].includes(status)
check(['responses.background', 'responses.retrieve()', 'responses.delete()'], async () => {
  const { id } = await inBackground('At last.')
  const response = await until(() => client.responses.retrieve(id), hasEnded)
  assert.deepEqual([response.id, response.status, response.output_text], [id, 'completed', 'At last.'])
  await client.responses.delete(id)
  assert.ok((await errorOf(client.responses.retrieve(id))) instanceof OpenAI.NotFoundError)
})
check('responses.cancel()', async () => {
  const { id } = await inBackground('Too late.')
  const { status } = await until(() => client.responses.cancel(id), hasEnded)
  // It may have ended before.
  assert.ok(['cancelled', 'completed'].includes(status), status)
})

// Webhooks.
async function receiving(run) {
  const got = []
  const server = createServer((request, response) => {
    const pieces = []
    request.on('data', (piece) => pieces.push(piece))
    request.on('end', () => {
      got.push({ headers: request.headers, body: Buffer.concat(pieces).toString() })
      response.writeHead(204).end()
    })
  })
  await new Promise((resolve) => server.listen(0, '127.0.0.1', resolve))
  try {
    await run(`http://127.0.0.1:${server.address().port}/hook`, got)
  } finally {
    server.closeAllConnections()
    server.close()
  }
}
// This client has no methods for endpoints, so that the check makes and deletes its own by `post` and `delete`.
check('webhooks.unwrap()', () =>
  receiving(async (url, got) => {
    const body = { name: 'batches', url, event_types: ['batch.completed', 'response.completed'] }
    const { id, signing_secret } = await client.post('/webhook_endpoints', { body })
    const ids = [(await order(['Hi.'])).id, (await inBackground('Hi.')).id]
    await until(() => got.length, (count) => count === 2)
    const events = await Promise.all(got.map((each) => client.webhooks.unwrap(each.body, each.headers, signing_secret)))
    const found = Object.fromEntries(events.map(({ type, data }) => [type, data.id]))
    assert.deepEqual([found['batch.completed'], found['response.completed']], ids)
    const error = await errorOf(client.webhooks.unwrap(`${got[0].body} `, got[0].headers, signing_secret))
    assert.ok(error instanceof OpenAI.InvalidWebhookSignatureError)
    await client.delete(`/webhook_endpoints/${id}`)
  }),
)
