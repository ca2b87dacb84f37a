// Decide whether and when to retry a request. Pure: the caller passes the time left and a random function.

import { InProgress } from './errors.js'

/** @import {AimeshError} from './errors.js' */

const FIRST_PAUSE_MS = 500
const MAX_PAUSE_MS = 8000

/**
 * After these errors a stream that has delivered text can resume, because another gateway has the rest or takes over. All other errors after
 * text are final.
 */
const RESUMABLE = new Set(['connection_failed', 'draining', 'link_lost', 'in_progress', 'rate_limited', 'unavailable', 'overloaded'])

/**
 * @typedef {object} Attempts
 * @property {number} failed earlier failures in a row, without this one
 * @property {number} maxRetries
 * @property {number} remainingMs
 * @property {() => number} random like `Math.random`
 */

/**
 * @param {AimeshError} error
 * @param {Attempts} attempts
 * @returns {number | null} the pause before the retry; null if the error is final
 */
export function pauseMs(error, { failed, maxRetries, remainingMs, random }) {
  if (!error.retryable) return null
  // A request that is still running is not a failure: wait as long as there is time.
  if (failed >= maxRetries && !(error instanceof InProgress)) return null
  const backoff = Math.min(MAX_PAUSE_MS, FIRST_PAUSE_MS * 2 ** Math.min(failed, 10))
  const jittered = backoff * (0.5 + random() / 2)
  // Jitter spreads the callers that got the same retry time.
  const requested = error.retryAfterMs === null ? 0 : error.retryAfterMs + jittered / 10
  const pause = Math.max(jittered, requested)
  return pause < remainingMs ? pause : null
}

/**
 * @param {AimeshError} error
 * @returns {boolean} whether a stream that has delivered text can resume after it
 */
export function canResumeAfter(error) {
  return RESUMABLE.has(error.code)
}
