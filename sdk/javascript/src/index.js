// The public API; the other files of this folder may change.

export { AnswerStream } from './answer_stream.js'
export { AIInferenceClient } from './client.js'
export {
  AimeshError,
  AnswerBroken,
  AnswerGone,
  BadRequest,
  BudgetExhausted,
  Cancelled,
  Conflict,
  ConnectionFailed,
  ContextExceeded,
  DeadlineExceeded,
  IdempotencyConflict,
  InProgress,
  Internal,
  NotAllowed,
  NotAuthenticated,
  NotFound,
  Overloaded,
  RateLimited,
  SessionEnded,
  TooLarge,
  Unavailable,
  UnknownModel,
} from './errors.js'
export { login } from './logins.js'
