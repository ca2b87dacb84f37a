// Log in, and renew a login session. These calls need no credential.

import { field, object } from './answers.js'
import { NO_CREDENTIAL } from './bearers.js'
import { Call } from './calls.js'
import { Gateway } from './gateway.js'
import { addressOf, loginBody, timeoutOf } from './requests.js'

/** @import {LoginOptions, Session} from '../index.d.ts' */

const LOGIN_MS = 30_000
/** For all attempts of one renewal: the gateway repeats its answer to a spent token for ten seconds. */
const RENEWAL_MS = 8000
const RENEWAL_RETRIES = 2

/**
 * Needs no key.
 * @param {LoginOptions} options
 * @returns {Promise<Session>} for a client, instead of a key
 */
export async function login({ baseUrl, signal, timeoutMs = LOGIN_MS, fetch = globalThis.fetch, ...credentials }) {
  const gateway = new Gateway(addressOf(baseUrl), NO_CREDENTIAL, fetch)
  // No retries: a wrong password would count twice.
  const call = new Call(gateway, { signal, timeoutMs: timeoutOf(timeoutMs), maxRetries: 0, once: false })
  return readSession(await call.ask({ method: 'POST', path: '/api/auth/login', body: loginBody(credentials) }))
}

/**
 * @param {Gateway} gateway without a credential
 * @param {string} sessionToken spent by the renewal
 * @returns {Promise<Session>}
 */
export async function renew(gateway, sessionToken) {
  const call = new Call(gateway, { signal: undefined, timeoutMs: RENEWAL_MS, maxRetries: RENEWAL_RETRIES, once: false })
  const body = JSON.stringify({ session_token: sessionToken })
  return readSession(await call.ask({ method: 'POST', path: '/api/auth/refresh', body }))
}

/**
 * @param {unknown} json
 * @returns {Session}
 */
function readSession(json) {
  const answer = object(json, 'the answer')
  return Object.freeze({ accessToken: field(answer, 'access_token', 'string'), sessionToken: field(answer, 'session_token', 'string') })
}
