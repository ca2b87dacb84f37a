// One exchange with the gateway over HTTP: the request, and its answer whole or byte by byte, within bounds. Every failure is an AimeshError,
// or the reason of the signal.

import { broken, readJson } from './answers.js'
import { until } from './deadline.js'
import { AnswerBroken, ConnectionFailed, fromAnswer, NotAuthenticated } from './errors.js'
import { joined } from './event_stream.js'

/** @import {Bearer} from './bearers.js' */

/** Of an answer that is read whole. The largest that there is, of embeddings, has some 10 MB. */
const MAX_ANSWER_BYTES = 64 * 1024 * 1024
/** Of an error, whoever sends it. */
const MAX_ERROR_BYTES = 64 * 1024

/**
 * @typedef {object} Asked
 * @property {string} method
 * @property {string} path
 * @property {string} [body] JSON
 * @property {Record<string, string>} [headers]
 */

export class Gateway {
  #baseUrl
  #bearer
  #fetch

  /**
   * @param {string} baseUrl
   * @param {Bearer} bearer
   * @param {typeof globalThis.fetch} fetch
   */
  constructor(baseUrl, bearer, fetch) {
    this.#baseUrl = baseUrl
    this.#bearer = bearer
    this.#fetch = fetch
  }

  /**
   * @param {Asked} asked
   * @param {AbortSignal} signal
   * @returns {Promise<unknown>} the answer as JSON
   */
  async ask(asked, signal) {
    const response = await this.open(asked, signal)
    return readJson(await this.#text(response, MAX_ANSWER_BYTES, signal))
  }

  /**
   * @param {Asked} asked
   * @param {AbortSignal} signal
   * @returns {Promise<Response>} one whose status is good; its body is to be read with `read`
   */
  async open(asked, signal) {
    const token = this.#bearer.token()
    const response = await this.#send(asked, token, signal)
    if (response.ok) return response
    const failure = await this.#failure(response, signal)
    if (!(failure instanceof NotAuthenticated)) throw failure
    // What was not let in has done nothing, so that it may be sent again whatever it is.
    if (!(await until(signal, this.#bearer.renew(token)))) throw this.#bearer.explain(failure)
    const again = await this.#send(asked, this.#bearer.token(), signal)
    if (again.ok) return again
    throw await this.#failure(again, signal)
  }

  /**
   * @param {Asked} asked
   * @param {string | null} token
   * @param {AbortSignal} signal
   */
  async #send({ method, path, body, headers }, token, signal) {
    /** @type {Record<string, string>} */
    const all = { ...headers }
    if (token !== null) all.authorization = `Bearer ${token}`
    if (body !== undefined) all['content-type'] = 'application/json'
    return await this.#unlessLost(signal, () =>
      this.#fetch.call(globalThis, this.#baseUrl + path, {
        method,
        body,
        headers: all,
        signal,
        // Whose request it is says the key, and not a browser's cookies.
        credentials: 'omit',
        cache: 'no-store',
        // A POST that is redirected may arrive as a GET, and its prompt at somebody else's.
        redirect: 'manual',
      }),
    )
  }

  /**
   * @param {Response} response
   * @param {AbortSignal} signal
   * @returns {AsyncGenerator<Uint8Array, void, void>} its bytes as they come
   */
  async *read(response, signal) {
    if (response.body === null) return
    const reader = response.body.getReader()
    try {
      while (true) {
        const { done, value } = await this.#unlessLost(signal, () => reader.read())
        if (done) return
        yield value
      }
    } finally {
      // Ends the connection where it was left in the middle, which is how the gateway learns that nobody reads.
      reader.cancel().catch(() => undefined)
    }
  }

  /**
   * @param {Response} response
   * @param {number} mostBytes
   * @param {AbortSignal} signal
   * @returns {Promise<string>}
   */
  async #text(response, mostBytes, signal) {
    /** @type {Uint8Array[]} */
    const parts = []
    let size = 0
    for await (const part of this.read(response, signal)) {
      size += part.length
      if (size > mostBytes) throw broken(`an answer has more than ${mostBytes} bytes`)
      parts.push(part)
    }
    try {
      return new TextDecoder('utf-8', { fatal: true }).decode(joined(parts))
    } catch (error) {
      throw broken('what came is not UTF-8', error)
    }
  }

  /**
   * @param {Response} response
   * @param {AbortSignal} signal
   */
  async #failure(response, signal) {
    const header = (/** @type {string} */ name) => response.headers.get(name)
    if (response.type === 'opaqueredirect' || (response.status >= 300 && response.status < 400)) {
      const hint = 'give the address that it redirects to as baseUrl'
      return new AnswerBroken(`${this.#baseUrl} redirects to ${header('location') ?? 'another address'}`, { code: 'answer_broken', hint })
    }
    /** @type {unknown} */
    let body = null
    try {
      body = readJson(await this.#text(response, MAX_ERROR_BYTES, signal))
    } catch (error) {
      // Of a proxy, or cut short: its status says enough.
      if (!(error instanceof AnswerBroken || error instanceof ConnectionFailed)) throw error
    }
    return fromAnswer(response.status, body, header)
  }

  /**
   * @template T
   * @param {AbortSignal} signal
   * @param {() => Promise<T>} work
   * @returns {Promise<T>}
   */
  async #unlessLost(signal, work) {
    try {
      signal.throwIfAborted()
      return await until(signal, work())
    } catch (error) {
      if (signal.aborted) throw signal.reason
      throw lost(this.#baseUrl, error)
    }
  }
}

/**
 * @param {string} where
 * @param {unknown} error what `fetch` or the reading of a body threw
 * @returns {ConnectionFailed}
 */
export function lost(where, error) {
  const cause = error instanceof Error && error.cause instanceof Error ? error.cause : error
  const why = cause instanceof Error ? ('code' in cause && cause.code ? String(cause.code) : cause.message) : String(cause)
  return new ConnectionFailed(`the connection to ${where} failed: ${why}`, {
    code: 'connection_failed',
    hint: 'check that baseUrl is right and the gateway runs; in a browser, that the page has the same origin',
    cause: error,
    retryable: true,
  })
}
