// Provide the credential of requests: a key, or the access token of a session, which is renewed once for all concurrent calls.

import { NotAuthenticated, SessionEnded } from './errors.js'

/** @import {Session} from '../index.d.ts' */
/** @import {AimeshError} from './errors.js' */

/**
 * @typedef {object} Bearer
 * @property {() => string | null} token null for none
 * @property {(spent: string | null) => Promise<boolean>} renew whether there is another token now
 * @property {(failure: AimeshError) => AimeshError} explain adds a hint to a rejected token that cannot be renewed
 */

/** For calls without a credential. @type {Bearer} */
export const NO_CREDENTIAL = { token: () => null, renew: async () => false, explain: (failure) => failure }

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
    // The gateway's own hint names calls that this package lacks.
    if (!this.#key.startsWith('aip_'))
      failure.hint = 'log in again, and pass the session instead of its access token: the client then renews it'
    return failure
  }
}

/** @implements {Bearer} */
export class Login {
  #session
  #renewSession
  /** @type {Promise<boolean> | null} */
  #renewing = null
  /** Why the session cannot be renewed. @type {NotAuthenticated | null} */
  #refusal = null

  /**
   * @param {Session} session
   * @param {(sessionToken: string) => Promise<Session>} renewSession must give up within ten seconds: a session token works once, and
   *   reusing it later than that counts as theft
   */
  constructor(session, renewSession) {
    this.#session = session
    this.#renewSession = renewSession
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
      this.#session = await this.#renewSession(this.#session.sessionToken)
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
  const hint = 'log in again and give the client the new session; long-running programs should use an API key'
  return new SessionEnded(message, { code: 'session_ended', hint, status, requestId })
}
