// The fields of a request, and tools.
import assert from 'node:assert/strict'
import { check, ensureNamed, fieldsOf, tagsOf } from '../../checklist.js'
import * as shared from './client.js'

const { HELLO, MODEL, PARAMETERS, ROME, SCRIPTED_MODEL, TOOL, TYPES, ask, client, isIgnored, isRefused, report, said, text } = shared

check('create.model', async () => assert.equal((await ask({})).model, SCRIPTED_MODEL))
check('create.messages', async () => {
  const messages = [
    { role: 'user', content: 'One.' },
    { role: 'assistant', content: 'Two.' },
  ]
  assert.deepEqual((await report('messages', {}, {}, ...messages)).slice(0, 2), messages)
})
check('create.messages[system]', async () => {
  const [first] = await report('messages', {}, {}, { role: 'user', content: 'One.' }, { role: 'system', content: 'Be brief.' })
  // vLLM gets later instructions as text of the user.
  assert.ok(first.content.startsWith('One.\n\nBe brief.'))
})
check('create.max_tokens', async () => assert.equal(await report('max_tokens', { max_tokens: 77 }), 77))
check('create.stream', async () => {
  const kinds = []
  for await (const event of await client.messages.create({ ...said(HELLO), stream: true })) kinds.push(event.type)
  assert.deepEqual([kinds[0], kinds.at(-1)], ['message_start', 'message_stop'])
})
check('create.system', async () => {
  assert.deepEqual(await report('messages.0', { system: 'Be brief.' }), { role: 'system', content: 'Be brief.' })
  assert.equal((await report('messages.0', { system: [text('Be brief. '), text('Be kind.')] })).content, 'Be brief. Be kind.')
})
check('create.stop_sequences', async () => {
  assert.deepEqual(await report('stop', { stop_sequences: ['END'] }), ['END'])
  // A letter that any answer has.
  const asked = { model: MODEL, max_tokens: 60, stop_sequences: ['e'], messages: [{ role: 'user', content: 'Repeat: Hello' }] }
  const answer = await client.messages.create(asked)
  assert.deepEqual([answer.stop_reason, answer.stop_sequence], ['stop_sequence', 'e'])
})
for (const [name, value] of Object.entries({ temperature: 0.25, top_p: 0.5, top_k: 20 })) {
  // The client has no types for them any more, but the API has the fields.
  check(`create.${name}`, async () => assert.equal(await report(name, { [name]: value }), value))
}

// Thinking and output.
const THINKING = { ...said({ think: 'Let me see.', say: 'Hello.' }) }
check('create.thinking', async () => {
  for (const [budget_tokens, effort] of [
    [1024, 'low'],
    [8192, 'medium'],
    [20000, 'high'],
  ]) {
    assert.equal(await report('reasoning_effort', { thinking: { type: 'enabled', budget_tokens } }), effort)
  }
  assert.equal(await report('reasoning_effort', { thinking: { type: 'disabled' } }), 'none')
  assert.equal(await report('reasoning_effort', { thinking: { type: 'adaptive' } }), null)
  const [thought] = (await ask({ ...THINKING, thinking: { type: 'adaptive', display: 'summarized' } })).content
  assert.deepEqual([thought.type, thought.thinking], ['thinking', 'Let me see.'])
  const hidden = (await ask({ ...THINKING, thinking: { type: 'adaptive', display: 'omitted' } })).content
  assert.ok(!hidden.some((block) => block.thinking))
})
check('create.output_config', async () => {
  assert.equal(await report('reasoning_effort', { thinking: { type: 'adaptive' }, output_config: { effort: 'max' } }), 'xhigh')
  const format = { type: 'json_schema', schema: PARAMETERS }
  assert.deepEqual((await report('response_format', { output_config: { format } })).json_schema.schema, PARAMETERS)
})

// What has no effect.
for (const [name, value] of Object.entries({
  cache_control: { type: 'ephemeral', ttl: '1h' },
  container: { id: 'container_1', skills: [{ type: 'anthropic', skill_id: 'pdf', version: 'latest' }] },
  diagnostics: { previous_message_id: 'msg_1' },
  inference_geo: 'eu',
  metadata: { user_id: 'somebody' },
  service_tier: 'standard_only',
  speed: 'fast',
})) {
  isIgnored('create', name, { [name]: value })
}
check(['create.user_profile_id', 'create.workspace_id'], async () => {
  // They are headers, which are not named.
  assert.equal((await ask({ user_profile_id: 'profile_1', workspace_id: 'wrkspc_1' })).content[0].text, HELLO.say)
})

// Tools.
const CALLING = said({ calls: [ROME] })
const OTHER = { ...TOOL, name: 'get_time' }
const names = async (fields, options) => ((await report('tools', fields, options)) ?? []).map((tool) => tool.function.name)
check(['create.tools', 'create.tools[custom]'], async () => {
  const [{ function: seen }] = await report('tools', { tools: [{ ...TOOL, type: 'custom' }] })
  assert.deepEqual([seen.name, seen.description, seen.parameters], Object.values(TOOL))
  const answer = await ask({ ...CALLING, tools: [TOOL] })
  assert.deepEqual([answer.stop_reason, answer.content[0].name, answer.content[0].input], ['tool_use', ...ROME])
})
for (const [name, value] of Object.entries({
  allowed_callers: ['direct'],
  cache_control: { type: 'ephemeral' },
  defer_loading: false,
  eager_input_streaming: true,
  input_examples: [{ city: 'Rome' }],
  strict: true,
})) {
  check(`create.tools.${name}`, async () => {
    assert.deepEqual(await names({ tools: [{ ...TOOL, [name]: value }] }, { ignores: [`tools.${name}`] }), ['get_weather'])
  })
}
for (const name of ['name', 'description', 'input_schema', 'type']) check(`create.tools.${name}`, async () => assert.ok(await names({ tools: [TOOL] })))
ensureNamed('create.tools', fieldsOf(TYPES, 'Tool'))

const checked = new Set(['custom'])
/** Add a check of each type of tool that is not the caller's own. */
export function addDropped(api, file, union) {
  for (const kind of tagsOf(file, union)) {
    if (checked.has(kind)) continue
    checked.add(kind)
    check(`${api}.tools[${kind}]`, async () => {
      const tool = { type: kind, name: 'theirs', ...(kind === 'mcp_toolset' ? { mcp_server_name: 'files' } : {}) }
      assert.deepEqual(await names({ tools: [TOOL, tool] }, { ignores: [`tools[${kind}]`] }), ['get_weather'])
    })
  }
}
addDropped('create', TYPES, 'ToolUnion')

check('create.tool_choice', async () => {
  const tools = [TOOL, OTHER]
  assert.equal(await report('tool_choice', { tools, tool_choice: { type: 'any' } }), 'required')
  assert.equal(await report('tool_choice', { tools, tool_choice: { type: 'none' } }), null)
  assert.deepEqual(await names({ tools, tool_choice: { type: 'auto' } }), ['get_weather', 'get_time'])
  assert.deepEqual(await names({ tools, tool_choice: { type: 'tool', name: 'get_time' } }), ['get_time'])
  const both = said({ calls: [ROME, ['get_time', { city: 'Oslo' }]] })
  assert.equal((await ask({ ...both, tools })).content.length, 2)
  assert.equal((await ask({ ...both, tools, tool_choice: { type: 'auto', disable_parallel_tool_use: true } })).content.length, 1)
  const search = { type: 'web_search_20250305', name: 'web_search' }
  await isRefused('web_search', { tools: [TOOL, search], tool_choice: { type: 'tool', name: 'web_search' } })
})
ensureNamed('create', fieldsOf(TYPES, 'MessageCreateParamsBase'))
