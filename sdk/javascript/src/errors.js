// What can go wrong, by the stable codes of the gateway: one class for each thing that a caller may want to tell apart. Pure.

/** @import {ErrorFacts} from '../index.d.ts' */

/** The root of the tree. Match on the class or on `code`, which is for ever; `message` and `hint` are for people and may change. */
export class AimeshError extends Error {
  /**
   * @param {string} message
   * @param {ErrorFacts} [facts]
   */
  constructor(message, facts = {}) {
    super(message, facts.cause === undefined ? undefined : { cause: facts.cause })
    this.name = new.target.name
    this.code = facts.code ?? 'internal'
    /** What to do next; may be empty. */
    this.hint = facts.hint ?? ''
    /** Of HTTP; null where there was no answer, or one that broke off. */
    this.status = facts.status ?? null
    this.requestId = facts.requestId ?? null
    /** The field that is wrong, where one is. */
    this.param = facts.param ?? null
    /** When to come back, where the gateway said so. */
    this.retryAfterMs = facts.retryAfterMs ?? null
    /** Whether sending the same again can help. */
    this.retryable = facts.retryable ?? false
  }
}

/** The request cannot succeed as it is; `param` and the message name the field. */
export class BadRequest extends AimeshError {}

/** The body or the prompt is larger than is taken. */
export class TooLarge extends BadRequest {}

/** No credential, or one that is unknown, expired or revoked. */
export class NotAuthenticated extends AimeshError {}

/** The session of this client gives no access token any more; log in again. */
export class SessionEnded extends NotAuthenticated {}

/** Money, not rate: waiting does not help. */
export class BudgetExhausted extends AimeshError {}

/** Known, but may not do this. */
export class NotAllowed extends AimeshError {}

/** There is no such thing, or it is not the caller's to see. */
export class NotFound extends AimeshError {}

/** Nobody serves this model; the message lists those that are served. */
export class UnknownModel extends NotFound {}

/** It contradicts what is there already. */
export class Conflict extends AimeshError {}

/** The idempotency key was used for another request. */
export class IdempotencyConflict extends Conflict {}

/** The same request under the same idempotency key still runs. */
export class InProgress extends Conflict {}

/** The answer was given and is no longer here to be read again. */
export class AnswerGone extends AimeshError {}

/** A rate limit; `retryAfterMs` says when there is room again. */
export class RateLimited extends AimeshError {}

/** The request was withdrawn. */
export class Cancelled extends AimeshError {}

/** A part of the platform does not answer; the same request may succeed later. */
export class Unavailable extends AimeshError {}

/** Everything that could answer is full. */
export class Overloaded extends Unavailable {}

/** There was no answer in time: the caller's `timeoutMs`, or the gateway's own limit. */
export class DeadlineExceeded extends AimeshError {}

/** A bug of the platform; its log has the reason under `requestId`. */
export class Internal extends AimeshError {}

/** The gateway was not reached, or the connection to it was lost. */
export class ConnectionFailed extends AimeshError {}

/** What came is no answer of an aimesh gateway, or not all of one. */
export class AnswerBroken extends AimeshError {}

/** @type {Record<string, [typeof AimeshError, boolean]>} */
const ROWS = {
  bad_request: [BadRequest, false],
  bad_settings: [BadRequest, false],
  poison: [BadRequest, false],
  tokens_too_large: [TooLarge, false],
  not_authenticated: [NotAuthenticated, false],
  budget_exhausted: [BudgetExhausted, false],
  approval_pending: [NotAllowed, true],
  bad_ticket: [NotAllowed, false],
  certificate_expired: [NotAllowed, false],
  clock_skew: [NotAllowed, false],
  node_revoked: [NotAllowed, false],
  confirmation_needed: [NotAllowed, false],
  not_allowed: [NotAllowed, false],
  not_certified: [NotAllowed, false],
  second_factor_needed: [NotAllowed, false],
  wrong_role: [NotAllowed, false],
  not_found: [NotFound, false],
  unknown_method: [NotFound, false],
  unknown_model: [UnknownModel, false],
  method_not_allowed: [BadRequest, false],
  already_exists: [Conflict, false],
  idempotency_conflict: [IdempotencyConflict, false],
  in_progress: [InProgress, true],
  answer_gone: [AnswerGone, false],
  too_large: [TooLarge, false],
  unsupported_media_type: [BadRequest, false],
  rate_limited: [RateLimited, true],
  cancelled: [Cancelled, false],
  internal: [Internal, false],
  draining: [Unavailable, true],
  link_lost: [Unavailable, true],
  model_crashed: [Unavailable, true],
  not_reachable: [Unavailable, true],
  overloaded: [Overloaded, true],
  peer_failed: [Unavailable, true],
  protocol_violation: [Unavailable, false],
  unavailable: [Unavailable, true],
  worker_lost: [Unavailable, true],
  deadline_exceeded: [DeadlineExceeded, true],
}

/** code -> its class, and whether sending the same again can help. A map: a code of the wire may be the name of what every object has. */
export const KINDS = new Map(Object.entries(ROWS))

/**
 * status -> what an error of it is whose code this version does not know, as a proxy's is: with the class the code that fits.
 * @type {Record<number, string>}
 */
const BY_STATUS = {
  401: 'not_authenticated',
  402: 'budget_exhausted',
  403: 'not_allowed',
  404: 'not_found',
  409: 'already_exists',
  410: 'answer_gone',
  413: 'too_large',
  429: 'rate_limited',
  499: 'cancelled',
  502: 'unavailable',
  503: 'unavailable',
  504: 'deadline_exceeded',
}

/**
 * @param {number} status
 * @returns {string} the code of the closest known kind
 */
function closest(status) {
  return BY_STATUS[status] ?? (status >= 400 && status < 500 ? 'bad_request' : 'internal')
}

/**
 * The error that an answer tells of: of the gateway by its error object, of anything before it by its status.
 * @param {number | null} status null for an error that is an event of a stream
 * @param {unknown} body what the body is as JSON
 * @param {(name: string) => string | null} header
 * @returns {AimeshError}
 */
export function fromAnswer(status, body, header = () => null) {
  const told = objectIn(objectIn(body).error)
  const nearest = closest(status ?? 500)
  const code = textIn(told.code) || nearest
  const [Kind, isRetryable] = KINDS.get(code) ?? KINDS.get(nearest) ?? [Internal, false]
  return new Kind(textIn(told.message) || `the gateway answered with status ${status}`, {
    code,
    hint: textIn(told.hint),
    status,
    requestId: textIn(told.request_id) || header('x-request-id'),
    param: textIn(told.param) || null,
    retryAfterMs: retryAfterMs(header),
    retryable: isRetryable && header('x-should-retry') !== 'false',
  })
}

/**
 * A date is passed over: our gateway sends none, and clocks differ.
 * @param {(name: string) => string | null} header
 * @returns {number | null}
 */
function retryAfterMs(header) {
  for (const [name, unit] of /** @type {[string, number][]} */ ([
    ['retry-after-ms', 1],
    ['retry-after', 1000],
  ])) {
    const said = header(name)
    if (said !== null && /^\d{1,9}$/.test(said)) return Number(said) * unit
  }
  return null
}

/**
 * @param {unknown} value
 * @returns {Record<string, unknown>}
 */
function objectIn(value) {
  return typeof value === 'object' && value !== null ? /** @type {Record<string, unknown>} */ (value) : {}
}

/**
 * @param {unknown} value
 * @returns {string}
 */
function textIn(value) {
  return typeof value === 'string' ? value : ''
}
