// Exchange HTTP requests and responses with the gateway, with limits. Every failure is an AimeshError or the signal's reason.

import { brokenAnswer, readJson } from './answers.js'
import { until } from './deadline.js'
import { AnswerBroken, ConnectionFailed, fromAnswer, NotAuthenticated } from './errors.js'
import { concatenated } from './event_stream.js'

/** @import {Bearer} from './bearers.js' */

/** For an answer that is read whole. The largest ones, embeddings, have about 10 MB. */
const MAX_ANSWER_BYTES = 64 * 1024 * 1024
/** For an error response. */
const MAX_ERROR_BYTES = 64 * 1024

/**
 * @typedef {object} GatewayRequest
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
   * @param {GatewayRequest} request
   * @param {AbortSignal} signal
   * @returns {Promise<unknown>} the answer as JSON
   */
  async ask(request, signal) {
    const response = await this.open(request, signal)
    return readJson(await this.#text(response, MAX_ANSWER_BYTES, signal))
  }

  /**
   * @param {GatewayRequest} request
   * @param {AbortSignal} signal
   * @returns {Promise<Response>} a successful response; read its body with `read`
   */
  async open(request, signal) {
    const token = this.#bearer.token()
    const response = await this.#send(request, token, signal)
    if (response.ok) return response
    const failure = await this.#failure(response, signal)
    if (!(failure instanceof NotAuthenticated)) throw failure
    // A rejected request was not run, so any request may be sent again.
    if (!(await until(signal, this.#bearer.renew(token)))) throw this.#bearer.explain(failure)
    const again = await this.#send(request, this.#bearer.token(), signal)
    if (again.ok) return again
    throw await this.#failure(again, signal)
  }

  /**
   * @param {GatewayRequest} request
   * @param {string | null} token
   * @param {AbortSignal} signal
   */
  async #send({ method, path, body, headers }, token, signal) {
    /** @type {Record<string, string>} */
    const allHeaders = { ...headers }
    if (token !== null) allHeaders.authorization = `Bearer ${token}`
    if (body !== undefined) allHeaders['content-type'] = 'application/json'
    return await this.#orConnectionFailed(signal, () =>
      this.#fetch.call(globalThis, this.#baseUrl + path, {
        method,
        body,
        headers: allHeaders,
        signal,
        // The key identifies the caller, not a browser's cookies.
        credentials: 'omit',
        cache: 'no-store',
        // A redirected POST can become a GET, and its prompt can reach another server.
        redirect: 'manual',
      }),
    )
  }

  /**
   * @param {Response} response
   * @param {AbortSignal} signal
   * @returns {AsyncGenerator<Uint8Array, void, void>} its bytes as they arrive
   */
  async *read(response, signal) {
    if (response.body === null) return
    const reader = response.body.getReader()
    try {
      while (true) {
        const { done, value } = await this.#orConnectionFailed(signal, () => reader.read())
        if (done) return
        yield value
      }
    } finally {
      // Close an unfinished connection, so that the gateway notices.
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
      if (size > mostBytes) throw brokenAnswer(`an answer has more than ${mostBytes} bytes`)
      parts.push(part)
    }
    try {
      return new TextDecoder('utf-8', { fatal: true }).decode(concatenated(parts))
    } catch (error) {
      throw brokenAnswer('the response is not UTF-8', error)
    }
  }

  /**
   * @param {Response} response
   * @param {AbortSignal} signal
   */
  async #failure(response, signal) {
    const header = (/** @type {string} */ name) => response.headers.get(name)
    if (response.type === 'opaqueredirect' || (response.status >= 300 && response.status < 400)) {
      const hint = 'use the address that it redirects to as baseUrl'
      return new AnswerBroken(`${this.#baseUrl} redirects to ${header('location') ?? 'another address'}`, { code: 'answer_broken', hint })
    }
    /** @type {unknown} */
    let body = null
    try {
      body = readJson(await this.#text(response, MAX_ERROR_BYTES, signal))
    } catch (error) {
      // From a proxy, or incomplete: the status is enough.
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
  async #orConnectionFailed(signal, work) {
    try {
      signal.throwIfAborted()
      return await until(signal, work())
    } catch (error) {
      if (signal.aborted) throw signal.reason
      throw connectionFailed(this.#baseUrl, error)
    }
  }
}

/**
 * @param {string} where
 * @param {unknown} error thrown by `fetch` or while reading the body
 * @returns {ConnectionFailed}
 */
export function connectionFailed(where, error) {
  const cause = error instanceof Error && error.cause instanceof Error ? error.cause : error
  const why = cause instanceof Error ? ('code' in cause && cause.code ? String(cause.code) : cause.message) : String(cause)
  return new ConnectionFailed(`the connection to ${where} failed: ${why}`, {
    code: 'connection_failed',
    hint: 'check that baseUrl is right and the gateway is running; in a browser, check that the page has the same origin',
    cause: error,
    retryable: true,
  })
}
