// Limit the time of a call, with a signal that ends it: on timeout, on the caller's abort, or when the caller stops reading.

import { DeadlineExceeded } from './errors.js'

/** `begin` starts a timer, so call `end` in `finally`. */
export class Deadline {
  #control = new AbortController()
  #timeoutMs
  /** @type {AbortSignal | undefined} */
  #callerSignal
  #timeoutError
  /** @type {ReturnType<typeof setTimeout> | undefined} */
  #timer
  /** @type {number | null} */
  #endsAt = null

  /**
   * @param {number} timeoutMs
   * @param {AbortSignal} [callerSignal] the caller's signal
   * @param {(timeoutMs: number) => unknown} [timeoutError] returns the signal's reason on timeout
   */
  constructor(timeoutMs, callerSignal, timeoutError = exceeded) {
    this.#timeoutMs = timeoutMs
    this.#callerSignal = callerSignal
    this.#timeoutError = timeoutError
  }

  /** @returns {AbortSignal} aborted when the call ends early, with the error for the caller */
  get signal() {
    return this.#control.signal
  }

  /** @returns {number} the time left */
  get remainingMs() {
    return this.#endsAt === null ? this.#timeoutMs : this.#endsAt - performance.now()
  }

  /** Start the time limit. Safe to call twice. */
  begin() {
    if (this.#endsAt !== null) return
    this.renew(this.#timeoutMs)
    if (this.#callerSignal?.aborted) this.stop(this.#callerSignal.reason)
    else this.#callerSignal?.addEventListener('abort', this.#follow)
  }

  /** @param {number} timeoutMs from now */
  renew(timeoutMs) {
    this.hold()
    this.#endsAt = performance.now() + timeoutMs
    this.#timer = setTimeout(() => this.stop(this.#timeoutError(timeoutMs)), timeoutMs)
  }

  /** Stop the timer until it is renewed; the caller can still abort. */
  hold() {
    clearTimeout(this.#timer)
  }

  /** @param {unknown} reason */
  stop(reason) {
    this.end()
    this.#control.abort(reason)
  }

  /** Stop the timer and ignore the caller's signal. Safe to call twice. */
  end() {
    this.hold()
    this.#callerSignal?.removeEventListener('abort', this.#follow)
  }

  #follow = () => this.stop(this.#callerSignal?.reason)
}

/**
 * @template T
 * @param {AbortSignal} signal
 * @param {Promise<T>} promise
 * @returns {Promise<T>} the promise's result, or rejects with the signal's reason as soon as it is aborted
 */
export async function until(signal, promise) {
  /** @type {() => void} */
  let stop = () => undefined
  const stopped = new Promise((_, reject) => {
    stop = () => reject(signal.reason)
    if (signal.aborted) stop()
    else signal.addEventListener('abort', stop)
  })
  try {
    return /** @type {T} */ (await Promise.race([promise, stopped]))
  } finally {
    signal.removeEventListener('abort', stop)
  }
}

/**
 * @param {number} milliseconds
 * @param {AbortSignal} signal
 * @returns {Promise<void>} rejects with the signal's reason if it is aborted first
 */
export async function pause(milliseconds, signal) {
  /** @type {ReturnType<typeof setTimeout> | undefined} */
  let timer
  try {
    await until(
      signal,
      new Promise((resolve) => {
        timer = setTimeout(resolve, milliseconds)
      }),
    )
  } finally {
    clearTimeout(timer)
  }
}

/**
 * @param {number} timeoutMs
 * @returns {DeadlineExceeded}
 */
function exceeded(timeoutMs) {
  return new DeadlineExceeded(`there was no complete answer after ${timeoutMs} ms`, {
    code: 'deadline_exceeded',
    hint: 'ask for fewer tokens, or increase timeoutMs',
  })
}
