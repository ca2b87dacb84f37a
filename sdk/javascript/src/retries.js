// Whether to send a request again, and when. Pure: the caller brings what is left of its time, and its dice.

import { InProgress } from './errors.js'

/** @import {AimeshError} from './errors.js' */

const FIRST_PAUSE_MS = 500
const LONGEST_PAUSE_MS = 8000

/**
 * What a stream that has told text may end with and still go on: its gateway went, and another one has, or takes over, the rest. All other
 * errors behind text are how the answer ended, and asking again tells the same.
 */
const PASSES_ON = new Set(['connection_failed', 'draining', 'link_lost', 'in_progress', 'rate_limited', 'unavailable', 'overloaded'])

/**
 * @typedef {object} Attempts
 * @property {number} failed how often it has failed so far, this failure not counted
 * @property {number} maxRetries
 * @property {number} remainingMs
 * @property {() => number} random as `Math.random`
 */

/**
 * @param {AimeshError} error
 * @param {Attempts} attempts
 * @returns {number | null} how long to wait; null where it is not to be sent again
 */
export function pauseMs(error, { failed, maxRetries, remainingMs, random }) {
  if (!error.retryable) return null
  // A request that runs is no failure: it is waited for, as long as there is time.
  if (failed >= maxRetries && !(error instanceof InProgress)) return null
  const grown = Math.min(LONGEST_PAUSE_MS, FIRST_PAUSE_MS * 2 ** Math.min(failed, 10))
  const drawn = grown * (0.5 + random() / 2)
  // All who were told the same moment do not come at the same moment.
  const told = error.retryAfterMs === null ? 0 : error.retryAfterMs + drawn / 10
  const pause = Math.max(drawn, told)
  return pause < remainingMs ? pause : null
}

/**
 * @param {AimeshError} error
 * @returns {boolean} whether a stream that has told text can go on behind it
 */
export function passesOn(error) {
  return PASSES_ON.has(error.code)
}
