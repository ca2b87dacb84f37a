// What only `client.beta` has: more fields, and the tool runner.
import assert from 'node:assert/strict'
import { betaJSONSchemaOutputFormat, betaTool } from '@anthropic-ai/sdk/helpers/beta/json-schema'
import { betaStandardSchemaTool } from '@anthropic-ai/sdk/helpers/beta/standard-schema'
import { betaZodOutputFormat, betaZodTool } from '@anthropic-ai/sdk/helpers/beta/zod'
import { z } from 'zod'
import { check, ensureNamed, errorOf, fieldsOf, script } from '../../checklist.js'
import * as shared from './client.js'
import { addDropped } from './fields.js'

const { ADA, BETA_TYPES, HELLO, PARAMETERS, Person, ROME, SCRIPTED_MODEL, TOOL, TYPES, ask, beta, client, everything, isIgnored, isRefused, report, said, user, text } = shared

// Fields.
check(['beta.context_management', 'beta.Message.context_management'], async () => {
  const edits = { edits: [{ type: 'clear_thinking_20251015', keep: 'all' }, { type: 'clear_tool_uses_20250919' }] }
  assert.deepEqual((await ask({ context_management: edits }, { create: beta })).context_management.applied_edits, [])
})
check('beta.betas', async () => {
  assert.equal((await ask({ betas: ['context-management-2025-06-27', 'from-the-future-2027-01-01'] }, { create: beta })).content[0].text, HELLO.say)
})
for (const [name, value] of Object.entries({
  billing_policy: { type: 'billing_policy', bill_to: 'self' },
  fallback_credit_token: { token: 'abc', mode: 'best_effort' },
  fallbacks: [{ model: 'claude-9' }],
  mcp_servers: [{ type: 'url', name: 'files', url: 'https://mcp.example' }],
})) {
  isIgnored('beta', name, { [name]: value }, beta)
}
isIgnored('beta', 'output_config.task_budget', { output_config: { task_budget: { type: 'tokens', total: 20_000 } } }, beta)
check(['beta.thread', 'beta.messages.thread()'], async () => {
  for (const thread of [{ type: 'create' }, { type: 'continue', previous_message_id: 'msg_1' }]) {
    await isRefused('send the whole conversation', { thread }, beta)
  }
})
check('beta.output_format', async () => {
  // The older name of `output_config.format`.
  const output_format = { type: 'json_schema', schema: PARAMETERS }
  assert.deepEqual((await report('response_format', { output_format }, { create: beta })).json_schema.schema, PARAMETERS)
})
check('beta.compaction', () => isRefused('nothing is summarized', { compaction: { type: 'summarize' } }, beta))
const plainFields = new Set(fieldsOf(TYPES, 'MessageCreateParamsBase'))
ensureNamed(
  'beta',
  fieldsOf(BETA_TYPES, 'MessageCreateParamsBase').filter((name) => !plainFields.has(name)),
)
addDropped('beta', BETA_TYPES, 'BetaToolUnion')

// The tool runner.
const weather = { name: 'get_weather', description: 'Says the weather.', run: ({ city }) => `18 degrees in ${city}` }
const get_weather = betaTool({ ...weather, inputSchema: PARAMETERS })
const RESULT = 'Results: 18 degrees in Rome; images: 0'
const runner = (more = {}) => client.beta.messages.toolRunner({ ...said({ calls: [ROME] }), tools: [get_weather], ...more })
const answerOf = async (running) => (await running).content[0].text

check(['beta.messages.toolRunner()', 'betaTool()'], async () => {
  const found = []
  for await (const message of runner()) found.push(message)
  assert.deepEqual(
    found.map((message) => message.stop_reason),
    ['tool_use', 'end_turn'],
  )
  assert.equal(found[1].content[0].text, RESULT)
  // It sends the whole conversation each time.
  assert.ok(found[1].usage.input_tokens > found[0].usage.input_tokens)
})
check(['toolRunner().runUntilDone()', 'toolRunner().done()', 'await toolRunner()'], async () => {
  assert.equal(await answerOf(runner().runUntilDone()), RESULT)
  assert.equal(await answerOf(runner()), RESULT)
  const running = runner()
  for await (const message of running) assert.ok(message.id)
  assert.equal(await answerOf(running.done()), RESULT)
})
check('toolRunner({ stream: true })', async () => {
  const last = []
  for await (const stream of runner({ stream: true })) last.push((await stream.finalMessage()).content.at(-1))
  assert.deepEqual([last[0].type, last[1].text], ['tool_use', RESULT])
})
check('toolRunner({ thread: false })', async () => assert.equal(await answerOf(runner({ thread: false })), RESULT))
check('toolRunner({ runToolsEagerly: true })', async () => {
  assert.equal(await answerOf(runner({ stream: true, runToolsEagerly: true }).runUntilDone()), RESULT)
})
check('toolRunner({ max_iterations })', async () => {
  let count = 0
  for await (const message of runner({ max_iterations: 1 })) count += message ? 1 : 0
  assert.equal(count, 1)
})
const city = z.object({ city: z.string() })
check('betaZodTool()', async () => assert.equal(await answerOf(runner({ tools: [betaZodTool({ ...weather, inputSchema: city })] })), RESULT))
check('betaStandardSchemaTool()', async () => {
  const tool = betaStandardSchemaTool({ ...weather, inputSchema: city, jsonSchema: PARAMETERS })
  assert.equal(await answerOf(runner({ tools: [tool] })), RESULT)
})
check('an error of a tool', async () => {
  const failing = betaTool({ ...weather, inputSchema: PARAMETERS, run: () => { throw new Error('no such city') } })
  assert.match(await answerOf(runner({ tools: [failing] })), /Error.*no such city/)
})

/** Return what the model reports after its call, when `change` has changed the runner. */
async function changed(path, change) {
  const running = runner()
  for await (const message of running) {
    if (message.stop_reason !== 'tool_use') continue
    const result = await running.generateToolResponse()
    change(running)
    running.pushMessages({ role: 'assistant', content: message.content }, result, { role: 'user', content: script({ report: [path] }) })
  }
  return JSON.parse((await running.done()).content[0].text)[path]
}
check(['toolRunner().pushMessages()', 'toolRunner().setMessagesParams()', 'toolRunner().generateToolResponse()'], async () => {
  const limit = (running) => running.setMessagesParams((params) => ({ ...params, max_tokens: 70 }))
  assert.equal(await changed('max_tokens', limit), 70)
})
check(['toolRunner().addTools()', 'toolRunner().removeTools()'], async () => {
  const tools = await changed('tools', (running) => {
    running.addTools(betaTool({ ...weather, name: 'get_time', inputSchema: PARAMETERS }))
    running.removeTools('get_weather')
  })
  assert.deepEqual(
    tools.map((tool) => tool.function.name),
    ['get_time'],
  )
})
check('toolRunner().compactBeforeNextTurn()', async () => {
  const running = runner()
  const error = await errorOf(
    (async () => {
      for await (const message of running) if (message.stop_reason === 'tool_use') running.compactBeforeNextTurn()
    })(),
  )
  assert.ok(error.message.includes('nothing is summarized'), error.message)
})

// The other methods.
const PERSON = said({ say: JSON.stringify(ADA) })
const SCHEMA = { type: 'object', properties: { name: { type: 'string' }, age: { type: 'integer' } }, required: ['name', 'age'] }
for (const [name, format] of [
  ['betaZodOutputFormat()', betaZodOutputFormat(Person)],
  ['betaJSONSchemaOutputFormat()', betaJSONSchemaOutputFormat({ ...SCHEMA, additionalProperties: false })],
]) {
  check(`beta.messages.parse(): ${name}`, async () => {
    assert.deepEqual((await client.beta.messages.parse({ ...PERSON, output_config: { format } })).parsed_output, ADA)
  })
}
check('beta.messages.stream()', async () => {
  const { content } = await client.beta.messages.stream(everything).finalMessage()
  assert.deepEqual(content[2].input, ROME[1])
})
check('beta.messages.countTokens()', async () => {
  const fields = { model: SCRIPTED_MODEL, messages: [user(text('Hello'))], tools: [TOOL], betas: ['a-2026-01-01'] }
  assert.ok((await client.beta.messages.countTokens(fields)).input_tokens > 0)
})
check('beta.models.list()', async () => {
  assert.ok((await client.beta.models.list()).data.some((model) => model.id === SCRIPTED_MODEL))
})
