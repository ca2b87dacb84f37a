// The blocks of messages.
import assert from 'node:assert/strict'
import { check, ensureNamed, tagsOf } from '../../checklist.js'
import * as shared from './client.js'

const { BETA_TYPES, HELLO, IMAGE, PNG, TOOL, TYPES, ask, assistant, beta, isRefused, report, said, text, user } = shared

/** Return the content of the message that reached the model for these blocks of the user. */
const read = async (blocks, ...ignores) => (await report('messages', {}, { ignores }, user(...blocks), assistant(text('Yes.'))))[0].content

/** Return the messages that reached the model for a call and its result of these blocks. */
async function result(blocks, more = {}, ...ignores) {
  const use = { type: 'tool_use', id: 'toolu_1', name: 'get_weather', input: { city: 'Rome' } }
  const returned = { type: 'tool_result', tool_use_id: 'toolu_1', content: blocks, ...more }
  const messages = [user(text('Weather?')), assistant(use), user(returned), assistant(text('Yes.'))]
  return (await report('messages', { tools: [TOOL] }, { ignores }, ...messages)).slice(1, -2)
}
const document = (source, more) => ({ type: 'document', source, ...more })
const TEXT = { type: 'text', media_type: 'text/plain', data: 'The text.' }

check('block.text', async () => assert.equal(await read([text('One. '), text('Two.')]), 'One. Two.'))
check('cache_control of a block', async () => {
  assert.equal(await read([{ ...text('One.'), cache_control: { type: 'ephemeral' } }], 'messages.content.cache_control'), 'One.')
})
check('citations of a block', async () => {
  const citations = [{ type: 'char_location', cited_text: 'a', document_index: 0, document_title: null, start_char_index: 0, end_char_index: 1 }]
  assert.equal(await read([{ ...text('One.'), citations }], 'messages.content.citations'), 'One.')
})
check('block.image', async () => {
  const parts = await read([text('Look: '), { ...IMAGE, transformations: { oversized_image: 'downsize' } }], 'messages.content.transformations')
  assert.deepEqual(
    parts.map((part) => part.type),
    ['text', 'image_url'],
  )
})
check('block.document', async () => {
  const seen = await read([document(TEXT, { title: 'The title', context: 'The context' })])
  for (const part of ['The text.', 'The title', 'The context']) assert.ok(seen.includes(part), seen)
  const parts = await read([document({ type: 'content', content: [text('The text.'), IMAGE] })])
  assert.deepEqual([parts[0].text, parts[1].type], ['The text.', 'image_url'])
})
check('block.search_result', async () => {
  const seen = await read([{ type: 'search_result', source: 'https://a.example', title: 'A', content: [text('The text.')] }])
  assert.ok(seen.includes('https://a.example') && seen.includes('The text.'))
})
check('block.thinking', async () => {
  const thought = { type: 'thinking', thinking: 'Let me see.', signature: 'abc' }
  const [, answer] = await report('messages', {}, {}, user(text('One.')), assistant(thought, text('Two.')))
  assert.deepEqual([answer.content, answer.reasoning], ['Two.', 'Let me see.'])
})
check(['block.tool_use', 'block.tool_result'], async () => {
  const [call, returned] = await result([text('18 degrees')])
  assert.deepEqual([call.tool_calls[0].id, call.tool_calls[0].function.name], ['toolu_1', 'get_weather'])
  assert.deepEqual([returned.tool_call_id, returned.content], ['toolu_1', '18 degrees'])
  assert.ok((await result([text('No such city')], { is_error: true }))[1].content.includes('Error'))
})
check('tool_result[image]', async () => {
  const [, returned, shown] = await result([text('A picture: '), IMAGE])
  assert.deepEqual([returned.role, shown.role], ['tool', 'user'])
  assert.equal(shown.content.filter((part) => part.type === 'image_url').length, 1)
})
check('tool_result[document]', async () => assert.ok((await result([document(TEXT)]))[1].content.includes('The text.')))
for (const [kind, block] of Object.entries({
  tool_reference: { tool_name: 'get_weather' },
  browser_state: { tabs: [{ tab_id: '1', title: 'A', url: 'https://a.example' }] },
})) {
  check(`tool_result[${kind}]`, async () => {
    const [, returned] = await result([text('A'), { type: kind, ...block }], {}, `messages.content.content[${kind}]`)
    assert.equal(returned.content, 'A')
  })
}

// What is refused.
for (const [name, source, sentence] of [
  ['url', { type: 'url', url: 'https://a.example/a.png' }, 'is a URL'],
  ['file', { type: 'file', file_id: 'file_1' }, 'must be the data itself'],
]) {
  check(`block source[${name}]`, async () => {
    for (const type of ['image', 'document']) await isRefused(sentence, said(HELLO, user({ type, source })))
  })
}
check('block source[base64]: PDF', () =>
  isRefused('is a PDF', said(HELLO, user(document({ type: 'base64', media_type: 'application/pdf', data: PNG })))),
)
check('beta block.compaction', () =>
  isRefused('compaction', said(HELLO, user(text('One.')), assistant({ type: 'compaction', content: 'They said hello.' })), beta),
)

// Blocks of the tools of Anthropic's servers, which are ignored.
const found = (kind, content) => [kind, { tool_use_id: 'srvtoolu_1', content }]
const BLOCKS = Object.fromEntries([
  ['redacted_thinking', { data: 'abc' }],
  ['server_tool_use', { id: 'srvtoolu_1', name: 'web_search', input: { query: 'weather' } }],
  found('web_search_tool_result', { type: 'web_search_tool_result_error', error_code: 'unavailable' }),
  found('web_fetch_tool_result', { type: 'web_fetch_tool_result_error', error_code: 'unavailable' }),
  found('code_execution_tool_result', { type: 'code_execution_tool_result_error', error_code: 'unavailable' }),
  found('bash_code_execution_tool_result', { type: 'bash_code_execution_tool_result_error', error_code: 'unavailable' }),
  found('text_editor_code_execution_tool_result', { type: 'text_editor_code_execution_create_result', is_file_update: false }),
  found('tool_search_tool_result', { type: 'tool_search_tool_result_error', error_code: 'unavailable' }),
  ['container_upload', { file_id: 'file_1' }],
])
const BETA_BLOCKS = Object.fromEntries([
  found('advisor_tool_result', { type: 'advisor_result', text: 'Yes.' }),
  ['mcp_tool_use', { id: 'mcptoolu_1', name: 'read', server_name: 'files', input: {} }],
  ['mcp_tool_result', { tool_use_id: 'mcptoolu_1', content: 'A' }],
  ['mcp_tool_listing', { mcp_server_name: 'files', tools: [] }],
  ['fallback', { from: { model: 'a' }, to: { model: 'b' }, trigger: {} }],
])
for (const [kind, block] of Object.entries({ ...BLOCKS, ...BETA_BLOCKS })) {
  check(kind in BLOCKS ? `block.${kind}` : `beta block.${kind}`, async () => {
    const fields = said(HELLO, user(text('One.')), assistant({ type: kind, ...block }, text('Two.')))
    assert.equal((await ask(fields, { create: beta, ignores: [`messages.content[${kind}]`] })).content[0].text, HELLO.say)
  })
}

// Changes of the tools.
const changed = async (change) =>
  ((await report('tools', { tools: [TOOL] }, { create: beta }, user(text('One.')), { role: 'system', content: [change] })) ?? []).map(
    (tool) => tool.function.name,
  )
check('beta block.tool_addition', async () => {
  const tool = { type: 'tool_definition', definition: { ...TOOL, name: 'get_time' } }
  assert.deepEqual(await changed({ type: 'tool_addition', tool }), ['get_weather', 'get_time'])
})
check('beta block.tool_removal', async () => {
  assert.deepEqual(await changed({ type: 'tool_removal', tool: { type: 'tool_reference', name: 'get_weather' } }), [])
})

const kinds = tagsOf(TYPES, 'ContentBlockParam')
ensureNamed('block', [...kinds])
ensureNamed(
  'beta block',
  [...tagsOf(BETA_TYPES, 'BetaContentBlockParam')].filter((kind) => !kinds.has(kind)),
)
