// One call of a user: sent, sent again where that helps, within its time, and withdrawn where nobody waits for it any more.

import { Deadline, pause } from './deadline.js'
import { AimeshError, AnswerBroken, ConnectionFailed } from './errors.js'
import { pauseMs } from './retries.js'

/** @import {Asked, Gateway} from './gateway.js' */

/** Of word that an answer is not wanted any more. Nobody waits for it; without it the gateway ends the answer half a minute later. */
const WITHDRAW_MS = 5000
export const INFERENCE_PATH = '/api/inference'

/**
 * @typedef {object} CallSettings
 * @property {AbortSignal | undefined} signal
 * @property {number} timeoutMs of all attempts together
 * @property {number} maxRetries
 * @property {boolean} once it runs a model, and must not run it again when it is sent again
 */

export class Call {
  /** Of all attempts, so that the gateway runs them once; null for what may be asked twice. */
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
   * @param {Asked} asked
   * @returns {Promise<unknown>} the answer as JSON
   */
  async ask(asked) {
    try {
      while (true) {
        try {
          return await this.gateway.ask(this.sent(asked), this.signal)
        } catch (error) {
          await this.waitAfter(error)
        }
      }
    } catch (error) {
      this.leave(error)
      throw error
    } finally {
      this.deadline.end()
    }
  }

  /**
   * @param {Asked} asked
   * @returns {Asked} as it goes out
   */
  sent(asked) {
    this.deadline.begin()
    // Or it would be run although nobody waits for it.
    this.signal.throwIfAborted()
    this.#isSent = true
    return this.#key === null ? asked : { ...asked, headers: { ...asked.headers, 'idempotency-key': this.#key } }
  }

  /** What comes is an answer: the failures before it are forgotten. */
  progressed() {
    this.#failed = 0
  }

  /**
   * Until it is to be sent again.
   * @param {unknown} error
   * @throws `error`, where it is not
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
   * Nobody waits for the answer any more. Under a key the gateway would go on with it, for a caller who has only lost the connection; so it
   * is told, and the model is free.
   * @param {unknown} error why there is none; where the gateway said so itself, it knows
   */
  leave(error) {
    const isTold = error instanceof AimeshError && !(error instanceof ConnectionFailed || error instanceof AnswerBroken)
    if (this.#key === null || !this.#isSent || (isTold && !this.signal.aborted)) return
    const deadline = new Deadline(WITHDRAW_MS)
    deadline.begin()
    this.gateway
      .ask({ method: 'DELETE', path: INFERENCE_PATH, headers: { 'idempotency-key': this.#key } }, deadline.signal)
      // Nobody is there who could do anything about it.
      .catch(() => undefined)
      .finally(() => deadline.end())
  }
}

/** @returns {string} 128 bits of chance. `crypto.randomUUID` is not there on pages that come over plain HTTP, as within a house. */
function newKey() {
  return Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, '0')).join('')
}
