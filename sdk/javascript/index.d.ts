/** Asks a model of an aimesh. See README.md. */

export type ClientOptions = ClientSettings & (WithKey | WithSession)

export interface WithKey {
  /** An API key (`aicli keys create NAME`), or an access token, which is not renewed. */
  apiKey: string
  session?: undefined
}

export interface WithSession {
  /** Of `login`. Its access token is renewed when it is too old. */
  session: Session
  apiKey?: undefined
}

/** A login. Only one client may go on with it. */
export interface Session {
  /** Good for ten minutes. */
  readonly accessToken: string
  /** Gives another access token and another one of itself, once. */
  readonly sessionToken: string
}

export interface LoginOptions extends CallOptions {
  /** It, or `email`. */
  username?: string
  email?: string
  password: string
  /** Of the second factor, where there is one. */
  code?: string
  baseUrl: string
  /** Used in place of the global one. */
  fetch?: typeof globalThis.fetch
}

/** Needs no key. */
export declare function login(options: LoginOptions): Promise<Session>

export interface ClientSettings {
  /** Of the gateway, or of the web pages, which pass requests on. */
  baseUrl: string
  /** How long a call may take, with all that is sent again; 300,000 without it. */
  timeoutMs?: number
  /** How often a request is sent again that failed of what may pass; 2 without it. */
  maxRetries?: number
  /** Used in place of the global one. */
  fetch?: typeof globalThis.fetch
}

export interface CallOptions {
  /** Ends the call; it throws the signal's reason. */
  signal?: AbortSignal | undefined
  /** In place of the client's. */
  timeoutMs?: number | undefined
}

export interface Message {
  role: 'system' | 'user' | 'assistant'
  content: string
}

export interface InferenceRequest extends CallOptions {
  /** It, or `messages`. */
  prompt?: string
  messages?: Message[]
  /** What the model is told before the prompt. */
  system?: string
  /** A name that `models()` lists, or another name of it; the default model without it. */
  model?: string
  maxTokens?: number
  temperature?: number
  topP?: number
  topK?: number
  stop?: string | string[]
  seed?: number
}

export interface TokenUsage {
  promptTokens: number
  completionTokens: number
  totalTokens: number
}

export interface Answer {
  text: string
  /** The one that answered, by its own name. */
  model: string
  usage: TokenUsage
  /** `stop`, `length`, or what a newer gateway has. */
  finishReason: string
  /** In the log, in the ledger, for support. */
  requestId: string
  responseTimeMs: number
}

/** Iterate it for the pieces of the text. It asks when it is read, and is read once. */
export declare class AnswerStream implements AsyncIterableIterator<string> {
  private constructor()
  /** All that was read until now. */
  get text(): string
  /** There when the stream was read to its end. */
  get answer(): Answer | null
  [Symbol.asyncIterator](): this
  next(): Promise<IteratorResult<string, undefined>>
  /** A loop that is left before the end calls it; see `abort`. */
  return(): Promise<IteratorResult<string, undefined>>
  /** Reads what is left. Throws an AbortError where it was aborted. */
  finish(): Promise<Answer>
  /** Nobody wants the rest: the model is free, and a loop over the stream ends. Safe to call twice, and after the end. */
  abort(): void
}

export interface EmbedRequest extends CallOptions {
  input: string | string[]
  model?: string
  /** Each vector is cut to so many numbers. */
  dimensions?: number
}

export interface Embeddings {
  /** One for each text, in their order. */
  vectors: number[][]
  model: string
  usage: { promptTokens: number; totalTokens: number }
}

export interface Model {
  id: string
  /** It gives vectors and no answers. */
  onlyEmbeds: boolean
}

export interface UsageDay {
  /** As 2026-01-31. */
  date: string
  /** Null for what was asked without a key. */
  apiKeyId: string | null
  requestCount: number
  tokensUsed: number
}

export interface Usage {
  userId: string
  requestCount: number
  tokensUsed: number
  /** The newest first; at most a year. */
  days: UsageDay[]
}

export interface QuotaLimit {
  /** `user` or `key`. */
  scope: string
  /** `requests_per_hour`, `requests_per_minute`, `tokens_per_minute` or `concurrency`. */
  kind: string
  limit: number
  remaining: number
  /** Until all of it is there again. */
  resetsInSeconds: number
}

export interface Quota {
  userId: string
  tier: string
  limitPerHour: number
  usedThisHour: number
  remaining: number
  resetsInSeconds: number
  /** Every limit that a request of this key counts against. */
  limits: QuotaLimit[]
}

/** Safe for any number of calls at once. */
export declare class AIInferenceClient {
  /** Throws a TypeError for options that cannot work. */
  constructor(options: ClientOptions)
  /** The one that was given, or what has become of it: each renewal spends the session token before. Null for a client with a key. */
  get session(): Session | null
  inference(request: InferenceRequest): Promise<Answer>
  stream(request: InferenceRequest): AnswerStream
  /** Sent again it is counted again: the gateway knows no repeats of embeddings. */
  embed(request: EmbedRequest): Promise<Embeddings>
  /** Those that the key may use, the default first. */
  models(options?: CallOptions): Promise<Model[]>
  usage(options?: CallOptions): Promise<Usage>
  quota(options?: CallOptions): Promise<Quota>
}

/** What an error is made of. */
export interface ErrorFacts {
  code?: string
  hint?: string
  status?: number | null
  requestId?: string | null
  param?: string | null
  retryAfterMs?: number | null
  retryable?: boolean
  cause?: unknown
}

/** The root of the tree. Match on the class or on `code`, which is for ever; `message` and `hint` are for people and may change. */
export declare class AimeshError extends Error {
  constructor(message: string, facts?: ErrorFacts)
  /** As docs/reference/errors.md lists them; besides `connection_failed`, `answer_broken` and `session_ended`, which are this client's. */
  code: string
  /** What to do next; may be empty. */
  hint: string
  /** Of HTTP; null where there was no answer, or one that broke off. */
  status: number | null
  requestId: string | null
  /** The field that is wrong, where one is. */
  param: string | null
  /** When to come back, where the gateway said so. */
  retryAfterMs: number | null
  /** Whether sending the same again can help. */
  retryable: boolean
}

/** The request cannot succeed as it is; `param` and the message name the field. */
export declare class BadRequest extends AimeshError {}
/** The body or the prompt is larger than is taken. */
export declare class TooLarge extends BadRequest {}
/** No credential, or one that is unknown, expired or revoked. */
export declare class NotAuthenticated extends AimeshError {}
/** The session of this client gives no access token any more; log in again. */
export declare class SessionEnded extends NotAuthenticated {}
/** Money, not rate: waiting does not help. */
export declare class BudgetExhausted extends AimeshError {}
/** Known, but may not do this. */
export declare class NotAllowed extends AimeshError {}
/** There is no such thing, or it is not the caller's to see. */
export declare class NotFound extends AimeshError {}
/** Nobody serves this model; the message lists those that are served. */
export declare class UnknownModel extends NotFound {}
/** It contradicts what is there already. */
export declare class Conflict extends AimeshError {}
/** The idempotency key was used for another request. */
export declare class IdempotencyConflict extends Conflict {}
/** The same request under the same idempotency key still runs. */
export declare class InProgress extends Conflict {}
/** The answer was given and is no longer here to be read again. */
export declare class AnswerGone extends AimeshError {}
/** A rate limit; `retryAfterMs` says when there is room again. */
export declare class RateLimited extends AimeshError {}
/** The request was withdrawn. */
export declare class Cancelled extends AimeshError {}
/** A part of the platform does not answer; the same request may succeed later. */
export declare class Unavailable extends AimeshError {}
/** Everything that could answer is full. */
export declare class Overloaded extends Unavailable {}
/** There was no answer in time: the caller's `timeoutMs`, or the gateway's own limit. */
export declare class DeadlineExceeded extends AimeshError {}
/** A bug of the platform; its log has the reason under `requestId`. */
export declare class Internal extends AimeshError {}
/** The gateway was not reached, or the connection to it was lost. */
export declare class ConnectionFailed extends AimeshError {}
/** What came is no answer of an aimesh gateway, or not all of one. */
export declare class AnswerBroken extends AimeshError {}
