// What a caller says, as what is sent. Pure. Whether the values are any good says the gateway, which names the field.

/** @import {CallOptions, EmbedRequest, InferenceRequest, Session} from '../index.d.ts' */

const OF_A_CALL = ['signal', 'timeoutMs']
const OF_INFERENCE = ['prompt', 'messages', 'system', 'model', 'maxTokens', 'temperature', 'topP', 'topK', 'stop', 'seed']
const OF_LOGIN = ['username', 'email', 'password', 'code']
const OF_EMBEDDING = ['input', 'model', 'dimensions']
/** The gateway's bound. A body that large could be sent and would be refused; this says so before. */
export const MAX_BODY_BYTES = 1024 * 1024
/** What a timer can wait; beyond it a timer of JavaScript fires at once. */
const LONGEST_TIMEOUT_MS = 2 ** 31 - 1

/**
 * @param {InferenceRequest} request
 * @param {boolean} stream
 * @returns {string}
 * @throws {TypeError} for an option that there is not
 */
export function inferenceBody(request, stream) {
  const body = chosen(request, OF_INFERENCE)
  return JSON.stringify(stream ? { ...body, stream } : body)
}

/**
 * @param {EmbedRequest} request
 * @returns {string}
 * @throws {TypeError} for an option that there is not
 */
export function embeddingBody(request) {
  return JSON.stringify({ ...chosen(request, OF_EMBEDDING), encoding_format: 'float' })
}

/**
 * @param {CallOptions} options
 * @throws {TypeError} for an option that there is not
 */
export function ensureOptions(options) {
  chosen(options, [])
}

/**
 * @param {unknown} timeoutMs
 * @returns {number}
 */
export function timeoutOf(timeoutMs) {
  if (typeof timeoutMs === 'number' && timeoutMs > 0 && timeoutMs <= LONGEST_TIMEOUT_MS) return timeoutMs
  throw new TypeError(`timeoutMs must be a number above 0, up to ${LONGEST_TIMEOUT_MS} (24 days), not ${String(timeoutMs)}`)
}

/**
 * @param {unknown} maxRetries
 * @returns {number}
 */
export function retriesOf(maxRetries) {
  if (Number.isInteger(maxRetries) && Number(maxRetries) >= 0) return Number(maxRetries)
  throw new TypeError(`maxRetries must be a whole number from 0 on, not ${String(maxRetries)}`)
}

/**
 * @param {unknown} apiKey
 * @returns {string}
 */
export function credentialOf(apiKey) {
  if (typeof apiKey === 'string' && /^[!-~]+$/.test(apiKey)) return apiKey
  // Without what it is: an error may be logged.
  throw new TypeError('apiKey must be an API key or an access token, without spaces; `aicli keys create NAME` makes a key')
}

/**
 * @param {unknown} session
 * @param {unknown} apiKey
 * @returns {Session}
 */
export function sessionOf(session, apiKey) {
  if (apiKey !== undefined) throw new TypeError('a client has an apiKey or a session, not both')
  const { accessToken, sessionToken } = /** @type {Record<string, unknown>} */ (session ?? {})
  for (const token of [accessToken, sessionToken]) {
    if (typeof token !== 'string' || !/^[!-~]+$/.test(token)) throw new TypeError('session must be what `login` answers')
  }
  return Object.freeze({ accessToken: String(accessToken), sessionToken: String(sessionToken) })
}

/**
 * @param {object} who
 * @returns {string}
 * @throws {TypeError} for an option that there is not
 */
export function loginBody(who) {
  return JSON.stringify(chosen(who, OF_LOGIN))
}

/**
 * @param {unknown} baseUrl
 * @returns {string} without a slash at its end
 */
export function addressOf(baseUrl) {
  let url
  try {
    url = new URL(String(baseUrl))
  } catch {
    throw new TypeError(`baseUrl must be an address as https://ai.example.org, not ${String(baseUrl)}`)
  }
  if (!['http:', 'https:'].includes(url.protocol)) throw new TypeError(`baseUrl must begin with https:// or http://, not ${url.protocol}`)
  if (url.username || url.password || url.search || url.hash) {
    throw new TypeError('baseUrl must have no user, query or fragment; the key goes into apiKey')
  }
  return url.href.replace(/\/+$/, '')
}

/**
 * @param {object} said
 * @param {string[]} names those that are sent
 * @returns {Record<string, unknown>}
 */
function chosen(said, names) {
  if (typeof said !== 'object' || said === null) throw new TypeError('a request is an object, as { prompt, model, maxTokens }')
  const stranger = Object.keys(said).find((name) => !names.includes(name) && !OF_A_CALL.includes(name))
  if (stranger !== undefined) {
    throw new TypeError(`there is no option ${JSON.stringify(stranger)}; there are ${[...names, ...OF_A_CALL].join(', ')}`)
  }
  return Object.fromEntries(Object.entries(said).filter(([name]) => names.includes(name)))
}
