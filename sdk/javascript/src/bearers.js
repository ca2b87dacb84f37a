// What requests go with: a key, or the access token of a session, which is renewed when it is too old, once for all calls that wait for it.

import { NotAuthenticated, SessionEnded } from './errors.js'

/** @import {Session} from '../index.d.ts' */
/** @import {AimeshError} from './errors.js' */

/**
 * @typedef {object} Bearer
 * @property {() => string | null} token null for none
 * @property {(spent: string | null) => Promise<boolean>} renew whether there is another one than that, got by whomever
 * @property {(failure: AimeshError) => AimeshError} explain the refusal of a token that is not renewed
 */

/** For what needs no credential. @type {Bearer} */
export const NOBODY = { token: () => null, renew: async () => false, explain: (failure) => failure }

/** @implements {Bearer} */
export class Key {
  #key

  /** @param {string} key an API key, or an access token without its session */
  constructor(key) {
    this.#key = key
  }

  token() {
    return this.#key
  }

  async renew() {
    return false
  }

  /** @param {AimeshError} failure */
  explain(failure) {
    // The gateway's own hint names calls that this package has not.
    if (!this.#key.startsWith('aip_')) failure.hint = 'log in again; a client that is given the session renews its access token by itself'
    return failure
  }
}

/** @implements {Bearer} */
export class Login {
  #session
  #ask
  /** @type {Promise<boolean> | null} */
  #renewing = null
  /** Why there will be no other token. @type {NotAuthenticated | null} */
  #refusal = null

  /**
   * @param {Session} session
   * @param {(sessionToken: string) => Promise<Session>} ask for another one, soon or not at all: a session token is good for one answer, and
   *   whoever sends it again later than ten seconds after is taken for a thief
   */
  constructor(session, ask) {
    this.#session = session
    this.#ask = ask
  }

  get session() {
    return this.#session
  }

  /** @throws {SessionEnded} before anything is sent */
  token() {
    if (this.#refusal !== null) throw ended(this.#refusal)
    return this.#session.accessToken
  }

  /** @param {string | null} spent */
  async renew(spent) {
    if (this.token() !== spent) return true
    this.#renewing ??= this.#renew().finally(() => {
      this.#renewing = null
    })
    return this.#renewing
  }

  /** @param {AimeshError} failure */
  explain(failure) {
    return failure
  }

  async #renew() {
    try {
      this.#session = await this.#ask(this.#session.sessionToken)
      return true
    } catch (error) {
      if (!(error instanceof NotAuthenticated)) throw error
      this.#refusal = error
      throw ended(error)
    }
  }
}

/** @param {NotAuthenticated} refusal */
function ended({ message, status, requestId }) {
  const hint = 'log in again, and give a client the new session; a program that stays is better off with an API key'
  return new SessionEnded(message, { code: 'session_ended', hint, status, requestId })
}
