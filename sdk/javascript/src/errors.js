// Define the errors of this package, by the stable codes of the gateway. Pure.

/** @import {ErrorFacts} from '../index.d.ts' */

/** The base class. Match on the class or on `code`, which never changes; `message` and `hint` are for people and may change. */
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
    /** The HTTP status; null without a complete response. */
    this.status = facts.status ?? null
    this.requestId = facts.requestId ?? null
    /** The wrong field, if there is one. */
    this.param = facts.param ?? null
    /** When to retry, if the gateway sent a time. */
    this.retryAfterMs = facts.retryAfterMs ?? null
    /** Whether a retry can help. */
    this.retryable = facts.retryable ?? false
  }
}

/** The request is invalid; `param` and the message name the field. */
export class BadRequest extends AimeshError {}

/** The prompt leaves no room for an answer in the model's context. */
export class ContextExceeded extends BadRequest {}

/** The body or the prompt is too large. */
export class TooLarge extends BadRequest {}

/** The credential is missing, unknown, expired or revoked. */
export class NotAuthenticated extends AimeshError {}

/** The session is over; log in again. */
export class SessionEnded extends NotAuthenticated {}

/** The credits are used up, or running requests hold them; the hint says which. */
export class BudgetExhausted extends AimeshError {}

/** The caller is known, but not allowed to do this. */
export class NotAllowed extends AimeshError {}

/** It doesn't exist, or the caller may not see it. */
export class NotFound extends AimeshError {}

/** No worker serves this model; the message lists the models that are served. */
export class UnknownModel extends NotFound {}

/** It conflicts with existing data. */
export class Conflict extends AimeshError {}

/** The idempotency key was used for another request. */
export class IdempotencyConflict extends Conflict {}

/** The same request under the same idempotency key is still running. */
export class InProgress extends Conflict {}

/** The answer is no longer stored. */
export class AnswerGone extends AimeshError {}

/** A rate limit; retry after `retryAfterMs`. */
export class RateLimited extends AimeshError {}

/** The request was canceled. */
export class Cancelled extends AimeshError {}

/** A part of the platform does not respond; a retry may succeed. */
export class Unavailable extends AimeshError {}

/** The platform is at capacity. */
export class Overloaded extends Unavailable {}

/** No answer within the caller's `timeoutMs`, or within the gateway's limit. */
export class DeadlineExceeded extends AimeshError {}

/** A bug in the platform; its log has details under `requestId`. */
export class Internal extends AimeshError {}

/** The gateway was not reachable, or the connection was lost. */
export class ConnectionFailed extends AimeshError {}

/** The response was invalid or incomplete. */
export class AnswerBroken extends AimeshError {}

/** @type {Record<string, [typeof AimeshError, boolean]>} */
const ROWS = {
  bad_request: [BadRequest, false],
  bad_settings: [BadRequest, false],
  content_filter: [BadRequest, false],
  context_length_exceeded: [ContextExceeded, false],
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
  person_refused: [NotAllowed, false],
  policy_forbidden: [NotAllowed, false],
  not_certified: [NotAllowed, false],
  second_factor_needed: [NotAllowed, false],
  wrong_role: [NotAllowed, false],
  not_found: [NotFound, false],
  authorization_pending: [BadRequest, true],
  slow_down: [BadRequest, true],
  access_denied: [BadRequest, false],
  expired_token: [BadRequest, false],
  unknown_method: [NotFound, false],
  unknown_model: [UnknownModel, false],
  method_not_allowed: [BadRequest, false],
  already_exists: [Conflict, false],
  idempotency_conflict: [IdempotencyConflict, false],
  in_progress: [InProgress, true],
  in_use: [Conflict, false],
  answer_gone: [AnswerGone, false],
  too_large: [TooLarge, false],
  insufficient_storage: [TooLarge, false],
  unsupported_media_type: [BadRequest, false],
  range_not_satisfiable: [BadRequest, false],
  rate_limited: [RateLimited, true],
  cancelled: [Cancelled, false],
  internal: [Internal, false],
  draining: [Unavailable, true],
  file_damaged: [Unavailable, false],
  link_lost: [Unavailable, true],
  model_crashed: [Unavailable, true],
  not_reachable: [Unavailable, true],
  config_unreadable: [Unavailable, true],
  not_started: [Unavailable, true],
  overloaded: [Overloaded, true],
  peer_failed: [Unavailable, true],
  preempted: [Unavailable, true],
  protocol_violation: [Unavailable, false],
  resource_unavailable: [RateLimited, true],
  unavailable: [Unavailable, true],
  worker_lost: [Unavailable, true],
  deadline_exceeded: [DeadlineExceeded, true],
}

/** code -> its class, and whether a retry can help. A Map, because an unknown code could be the name of an inherited property. */
export const KINDS = new Map(Object.entries(ROWS))

/**
 * OpenAI's codes, from servers that send no aimesh_code -> ours.
 * @type {Record<string, string | undefined>}
 */
const OF_OPENAI = {
  insufficient_quota: 'budget_exhausted',
  invalid_api_key: 'not_authenticated',
  model_not_found: 'unknown_model',
  rate_limit_exceeded: 'rate_limited',
}

/**
 * status -> the closest code, for errors with an unknown code and errors of proxies.
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
  507: 'insufficient_storage',
}

/**
 * @param {number} status
 * @returns {string} the code of the closest known kind
 */
function closest(status) {
  return BY_STATUS[status] ?? (status >= 400 && status < 500 ? 'bad_request' : 'internal')
}

/**
 * Return the error of a response, from the gateway's error object, or from the status if a proxy answered.
 * @param {number | null} status null for an error in a stream
 * @param {unknown} body the parsed body
 * @param {(name: string) => string | null} header
 * @returns {AimeshError}
 */
export function fromAnswer(status, body, header = () => null) {
  const details = objectIn(objectIn(body).error)
  const nearest = closest(status ?? 500)
  // On /v1, `code` has OpenAI's code.
  const code = textIn(details.aimesh_code) || textIn(details.code) || nearest
  const [Kind, isRetryable] = KINDS.get(code) ??
    KINDS.get((Object.hasOwn(OF_OPENAI, code) && OF_OPENAI[code]) || nearest) ?? [Internal, false]
  return new Kind(textIn(details.message) || `the gateway answered with status ${status}`, {
    code,
    hint: textIn(details.hint),
    status,
    requestId: textIn(details.request_id) || header('x-request-id'),
    param: textIn(details.param) || null,
    retryAfterMs: retryAfterMs(header),
    retryable: isRetryable && header('x-should-retry') !== 'false',
  })
}

/**
 * Dates are ignored: our gateway sends none, and clocks differ.
 * @param {(name: string) => string | null} header
 * @returns {number | null}
 */
function retryAfterMs(header) {
  for (const [name, unit] of /** @type {[string, number][]} */ ([
    ['retry-after-ms', 1],
    ['retry-after', 1000],
  ])) {
    const value = header(name)
    if (value !== null && /^\d{1,9}$/.test(value)) return Number(value) * unit
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
