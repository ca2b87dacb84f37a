// Convert a caller's options to request bodies. Pure. The gateway validates the values and names the field.

/** @import {CallOptions, EmbedRequest, InferenceRequest, Session} from '../index.d.ts' */

const CALL_OPTIONS = ['signal', 'timeoutMs']
const SAMPLING_OPTIONS = ['maxTokens', 'temperature', 'topP', 'topK', 'stop', 'seed']
const OUTPUT_OPTIONS = [
  'tools',
  'toolChoice',
  'responseFormat',
  'logprobs',
  'topLogprobs',
  'parallelToolCalls',
  'reasoningEffort',
  'chatTemplateKwargs',
]
const INFERENCE_OPTIONS = ['prompt', 'messages', 'system', 'model', ...SAMPLING_OPTIONS, ...OUTPUT_OPTIONS]
const LOGIN_OPTIONS = ['username', 'email', 'password', 'code']
const EMBEDDING_OPTIONS = ['input', 'model', 'dimensions']
/** The longest delay of a timer; beyond it JavaScript's timers fire immediately. */
const MAX_TIMEOUT_MS = 2 ** 31 - 1

/**
 * @param {InferenceRequest} request
 * @param {boolean} stream
 * @returns {string}
 * @throws {TypeError} for an unknown option
 */
export function inferenceBody(request, stream) {
  const body = pickOptions(request, INFERENCE_OPTIONS)
  return JSON.stringify(stream ? { ...body, stream } : body)
}

/**
 * @param {EmbedRequest} request
 * @returns {string}
 * @throws {TypeError} for an unknown option
 */
export function embeddingBody(request) {
  return JSON.stringify({ ...pickOptions(request, EMBEDDING_OPTIONS), encoding_format: 'float' })
}

/**
 * @param {CallOptions} options
 * @throws {TypeError} for an unknown option
 */
export function ensureOptions(options) {
  pickOptions(options, [])
}

/**
 * @param {unknown} timeoutMs
 * @returns {number}
 */
export function timeoutOf(timeoutMs) {
  if (typeof timeoutMs === 'number' && timeoutMs > 0 && timeoutMs <= MAX_TIMEOUT_MS) return timeoutMs
  throw new TypeError(`timeoutMs must be a number above 0, up to ${MAX_TIMEOUT_MS} (24 days), not ${String(timeoutMs)}`)
}

/**
 * @param {unknown} maxRetries
 * @returns {number}
 */
export function retriesOf(maxRetries) {
  if (Number.isInteger(maxRetries) && Number(maxRetries) >= 0) return Number(maxRetries)
  throw new TypeError(`maxRetries must be a whole number, 0 or more, not ${String(maxRetries)}`)
}

/**
 * @param {unknown} apiKey
 * @returns {string}
 */
export function credentialOf(apiKey) {
  if (typeof apiKey === 'string' && /^[!-~]+$/.test(apiKey)) return apiKey
  // Without the key itself: errors are logged.
  throw new TypeError('apiKey must be an API key or an access token, without spaces; `aicli keys create NAME` makes a key')
}

/**
 * @param {unknown} session
 * @param {unknown} apiKey
 * @returns {Session}
 */
export function sessionOf(session, apiKey) {
  if (apiKey !== undefined) throw new TypeError('pass either apiKey or session, not both')
  const { accessToken, sessionToken } = /** @type {Record<string, unknown>} */ (session ?? {})
  for (const token of [accessToken, sessionToken]) {
    if (typeof token !== 'string' || !/^[!-~]+$/.test(token)) throw new TypeError('session must be the result of `login`')
  }
  return Object.freeze({ accessToken: String(accessToken), sessionToken: String(sessionToken) })
}

/**
 * @param {object} credentials
 * @returns {string}
 * @throws {TypeError} for an unknown option
 */
export function loginBody(credentials) {
  return JSON.stringify(pickOptions(credentials, LOGIN_OPTIONS))
}

/**
 * @param {unknown} baseUrl
 * @returns {string} without a trailing slash
 */
export function addressOf(baseUrl) {
  let url
  try {
    url = new URL(String(baseUrl))
  } catch {
    throw new TypeError(`baseUrl must be a URL such as https://ai.example.org, not ${String(baseUrl)}`)
  }
  if (!['http:', 'https:'].includes(url.protocol)) throw new TypeError(`baseUrl must begin with https:// or http://, not ${url.protocol}`)
  if (url.username || url.password || url.search || url.hash) {
    throw new TypeError('baseUrl must have no user, query or fragment; pass the key as apiKey')
  }
  return url.href.replace(/\/+$/, '')
}

/**
 * @param {object} options
 * @param {string[]} names the options to send
 * @returns {Record<string, unknown>}
 */
function pickOptions(options, names) {
  if (typeof options !== 'object' || options === null) throw new TypeError('a request is an object such as { prompt, model, maxTokens }')
  const unknown = Object.keys(options).find((name) => !names.includes(name) && !CALL_OPTIONS.includes(name))
  if (unknown !== undefined) {
    throw new TypeError(`unknown option ${JSON.stringify(unknown)}; use ${[...names, ...CALL_OPTIONS].join(', ')}`)
  }
  return Object.fromEntries(Object.entries(options).filter(([name]) => names.includes(name)))
}
