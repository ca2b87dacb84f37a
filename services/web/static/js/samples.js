// Writes the current request as curl, Python, JavaScript and aicli code. Pure; never contains a key.

/**
 * @typedef {{type: 'text', text: string} | {type: 'image_url', image_url: {url: string}}} Part
 * @typedef {{role: string, content: string | Part[]}} ChatMessage
 * @typedef {{model: string, messages: ChatMessage[], temperature?: number, max_tokens?: number, top_p?: number, seed?: number,
 *   reasoning_effort?: string}} Request
 */

const OPTIONS = /** @type {const} */ (['temperature', 'max_tokens', 'top_p', 'seed', 'reasoning_effort'])

/**
 * @param {string} address  The API's URL, without `/v1`.
 * @param {Request} request
 * @returns {{curl: string, python: string, javascript: string, aicli: string}}
 */
export function toSamples(address, request) {
  return {
    curl: toCurl(address, request),
    python: toPython(address, request),
    javascript: toJavascript(address, request),
    aicli: toAicli(request),
  }
}

/**
 * Returns the content of a message. The name of a file stands for its data.
 * @param {string} text @param {readonly {name: string, url: string}[]} images @returns {string | Part[]}
 */
export function toContent(text, images) {
  if (!images.length) return text
  const urls = images.map(({ name, url }) => `${url.slice(0, url.indexOf(',') + 1)}<${name}>`)
  return [...urls.map((url) => /** @type {const} */ ({ type: 'image_url', image_url: { url } })), { type: 'text', text }]
}

/** Quotes a word for a POSIX shell. @param {string} text */
const quote = (text) => (/^[\w./:@%+=,-]+$/.test(text) ? text : `'${text.replaceAll("'", `'\\''`)}'`)
/** @param {string} text @param {number} spaces */
const indent = (text, spaces) => text.replaceAll('\n', `\n${' '.repeat(spaces)}`)

/** @param {string} address @param {Request} request */
function toCurl(address, request) {
  const body = JSON.stringify({ ...request, stream: true }, null, 2)
  return [
    `curl ${quote(`${address}/v1/chat/completions`)} \\`,
    '  -H "Authorization: Bearer $AIMESH_API_KEY" \\',
    '  -H "Content-Type: application/json" \\',
    `  -d '${indent(body.replaceAll("'", `'\\''`), 2)}'`,
  ].join('\n')
}

/** JSON strings and numbers are valid Python. @param {string} address @param {Request} request */
function toPython(address, request) {
  const given = OPTIONS.flatMap((name) => (request[name] === undefined ? [] : [`    ${name}=${JSON.stringify(request[name])},`]))
  return [
    'import os',
    'from openai import OpenAI',
    '',
    `client = OpenAI(base_url=${JSON.stringify(`${address}/v1`)}, api_key=os.environ["AIMESH_API_KEY"])`,
    'stream = client.chat.completions.create(',
    `    model=${JSON.stringify(request.model)},`,
    `    messages=${indent(JSON.stringify(request.messages, null, 4), 4)},`,
    ...given,
    '    stream=True,',
    ')',
    'for chunk in stream:',
    '    if chunk.choices:',
    '        print(chunk.choices[0].delta.content or "", end="", flush=True)',
  ].join('\n')
}

/** @param {string} address @param {Request} request */
function toJavascript(address, { max_tokens, top_p, reasoning_effort, ...request }) {
  const options = { ...request, maxTokens: max_tokens, topP: top_p, reasoningEffort: reasoning_effort }
  return [
    '// From a checkout of aimesh: npm install ./sdk/javascript',
    "import { AIInferenceClient } from 'aimesh-client'",
    '',
    `const client = new AIInferenceClient({ apiKey: process.env.AIMESH_API_KEY, baseUrl: ${JSON.stringify(address)} })`,
    `for await (const piece of client.stream(${JSON.stringify(options, null, 2)})) {`,
    '  process.stdout.write(piece)',
    '}',
  ].join('\n')
}

/** @param {string | Part[]} content @returns {{text: string, files: string[]}} */
function fromContent(content) {
  if (typeof content === 'string') return { text: content, files: [] }
  const urls = content.flatMap((part) => (part.type === 'text' ? [] : [part.image_url.url]))
  const text = content.map((part) => (part.type === 'text' ? part.text : '')).join('')
  return { text, files: urls.map((url) => url.slice(url.indexOf('<') + 1, -1)) }
}

/** aicli sends only the last question. @param {Request} request */
function toAicli(request) {
  const { messages } = request
  const system = messages.find((message) => message.role === 'system')
  const { text, files } = fromContent(messages.findLast((message) => message.role === 'user')?.content ?? '')
  const given = OPTIONS.flatMap((name) => (request[name] === undefined ? [] : [`--${name.replace('_', '-')} ${request[name]}`]))
  const images = files.map((file) => `--image ${quote(file)}`)
  // `--` before a question that starts with a dash, which would parse as an option.
  const words = ['aicli infer', `-m ${quote(request.model)}`, ...given, ...images]
  if (system) words.push(`-s ${quote(fromContent(system.content).text)}`)
  return [...words, `${text.startsWith('-') ? '-- ' : ''}${quote(text)}`].join(' ')
}
