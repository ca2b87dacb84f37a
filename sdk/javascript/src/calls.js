// Run one call: send it, retry within its time limit, and cancel it if the caller leaves.

import { Deadline, pause } from './deadline.js'
import { AimeshError, AnswerBroken, ConnectionFailed } from './errors.js'
import { pauseMs } from './retries.js'

/** @import {GatewayRequest, Gateway} from './gateway.js' */

/** For a cancellation, which runs in the background. If it fails, the gateway ends the answer after 30 s. */
const WITHDRAW_MS = 5000
export const INFERENCE_PATH = '/api/inference'

/**
 * @typedef {object} CallSettings
 * @property {AbortSignal | undefined} signal
 * @property {number} timeoutMs for all attempts together
 * @property {number} maxRetries
 * @property {boolean} once whether it runs a model: a retry must not run it again
 */

export class Call {
  /** Shared by all attempts, so that the gateway runs only one; null for calls that may run twice. */
  #key
  #maxRetries
  #failed = 0
  #isSent = false

  /**
   * @param {Gateway} gateway
   * @param {CallSettings} settings
   */
  constructor(gateway, { signal, timeoutMs, maxRetries, once }) {
    this.gateway = gateway
    this.#key = once ? newKey() : null
    this.#maxRetries = maxRetries
    this.deadline = new Deadline(timeoutMs, signal)
  }

  /** @returns {AbortSignal} */
  get signal() {
    return this.deadline.signal
  }

  /**
   * @param {GatewayRequest} request
   * @returns {Promise<unknown>} the answer as JSON
   */
  async ask(request) {
    try {
      while (true) {
        try {
          return await this.gateway.ask(this.prepare(request), this.signal)
        } catch (error) {
          await this.waitAfter(error)
        }
      }
    } catch (error) {
      this.cancelUnlessAnswered(error)
      throw error
    } finally {
      this.deadline.end()
    }
  }

  /**
   * @param {GatewayRequest} request
   * @returns {GatewayRequest} as it is sent
   */
  prepare(request) {
    this.deadline.begin()
    // Otherwise the gateway would run a canceled request.
    this.signal.throwIfAborted()
    this.#isSent = true
    return this.#key === null ? request : { ...request, headers: { ...request.headers, 'idempotency-key': this.#key } }
  }

  /** Call this for new text: only consecutive failures count. */
  resetFailures() {
    this.#failed = 0
  }

  /**
   * Wait until the next attempt.
   * @param {unknown} error
   * @throws `error` if it is final
   */
  async waitAfter(error) {
    if (!(error instanceof AimeshError)) throw error
    const { remainingMs } = this.deadline
    const wait = pauseMs(error, { failed: this.#failed, maxRetries: this.#maxRetries, remainingMs, random: Math.random })
    if (wait === null) throw error
    this.#failed += 1
    await pause(wait, this.signal)
  }

  /**
   * Cancel a request that has an idempotency key, because the gateway would continue it after a disconnect.
   * @param {unknown} error why there is no answer; after an error of the gateway, nothing is left to cancel
   */
  cancelUnlessAnswered(error) {
    const isGatewayError = error instanceof AimeshError && !(error instanceof ConnectionFailed || error instanceof AnswerBroken)
    if (this.#key === null || !this.#isSent || (isGatewayError && !this.signal.aborted)) return
    const deadline = new Deadline(WITHDRAW_MS)
    deadline.begin()
    this.gateway
      .ask({ method: 'DELETE', path: INFERENCE_PATH, headers: { 'idempotency-key': this.#key } }, deadline.signal)
      // The caller has left.
      .catch(() => undefined)
      .finally(() => deadline.end())
  }
}

/** @returns {string} 128 random bits. `crypto.randomUUID` is missing on pages served over plain HTTP. */
function newKey() {
  return Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, '0')).join('')
}
