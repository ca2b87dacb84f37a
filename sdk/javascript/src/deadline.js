// How long a call may take, and the one signal that ends it: its time is over, its caller wants no more, or it has left off reading.

import { DeadlineExceeded } from './errors.js'

/** Use it in `try` and call `end` in `finally`: from `begin` on a timer runs. */
export class Deadline {
  #control = new AbortController()
  #timeoutMs
  /** @type {AbortSignal | undefined} */
  #callers
  #late
  /** @type {ReturnType<typeof setTimeout> | undefined} */
  #timer
  /** @type {number | null} */
  #endsAt = null

  /**
   * @param {number} timeoutMs
   * @param {AbortSignal} [callers] what the caller ends the call by
   * @param {(timeoutMs: number) => unknown} [late] the reason that the signal has when the time is over
   */
  constructor(timeoutMs, callers, late = exceeded) {
    this.#timeoutMs = timeoutMs
    this.#callers = callers
    this.#late = late
  }

  /** @returns {AbortSignal} aborted when the call is over; its reason is what the caller is told */
  get signal() {
    return this.#control.signal
  }

  /** @returns {number} once it has begun */
  get remainingMs() {
    return this.#endsAt === null ? this.#timeoutMs : this.#endsAt - performance.now()
  }

  /** The time runs from here on. Safe to call twice. */
  begin() {
    if (this.#endsAt !== null) return
    this.renew(this.#timeoutMs)
    if (this.#callers?.aborted) this.stop(this.#callers.reason)
    else this.#callers?.addEventListener('abort', this.#follow)
  }

  /** @param {number} timeoutMs from now on */
  renew(timeoutMs) {
    this.hold()
    this.#endsAt = performance.now() + timeoutMs
    this.#timer = setTimeout(() => this.stop(this.#late(timeoutMs)), timeoutMs)
  }

  /** Until it is renewed no time runs; the caller may still end it. */
  hold() {
    clearTimeout(this.#timer)
  }

  /** @param {unknown} reason */
  stop(reason) {
    this.end()
    this.#control.abort(reason)
  }

  /** Nothing ends the call any more. Safe to call twice. */
  end() {
    this.hold()
    this.#callers?.removeEventListener('abort', this.#follow)
  }

  #follow = () => this.stop(this.#callers?.reason)
}

/**
 * @template T
 * @param {AbortSignal} signal
 * @param {Promise<T>} promise
 * @returns {Promise<T>} what the promise comes to; the signal's reason as soon as it is aborted, also where the promise takes no signal
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
 * @returns {Promise<void>} throws the signal's reason when it is aborted before
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
  return new DeadlineExceeded(`there was no whole answer after ${timeoutMs} ms`, {
    code: 'deadline_exceeded',
    hint: 'ask for fewer tokens, or give more time with timeoutMs',
  })
}
