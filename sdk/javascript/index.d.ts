/** JavaScript client for aimesh. See README.md. */

export type ClientOptions = ClientSettings & (WithKey | WithSession)

export interface WithKey {
  /** An API key (`aicli keys create NAME`), or an access token, which is not renewed. */
  apiKey: string
  session?: undefined
}

export interface WithSession {
  /** From `login`. The client renews its access token when it expires. */
  session: Session
  apiKey?: undefined
}

/** A login. Use it in one client only. */
export interface Session {
  /** Valid for ten minutes. */
  readonly accessToken: string
  /** Can be exchanged once for a new access token and a new session token. */
  readonly sessionToken: string
}

export interface LoginOptions extends CallOptions {
  /** Set `username` or `email`. */
  username?: string
  email?: string
  password: string
  /** The code of the second factor, if the account has one. */
  code?: string
  baseUrl: string
  /** Replaces the global `fetch`. */
  fetch?: typeof globalThis.fetch
}

/** Log in. Needs no key. */
export declare function login(options: LoginOptions): Promise<Session>

export interface ClientSettings {
  /** The address of the gateway, or of the web pages, which forward requests. */
  baseUrl: string
  /** Limit for a call, including retries. Default: 300,000. */
  timeoutMs?: number
  /** How often a request is retried after a temporary failure. Default: 2. */
  maxRetries?: number
  /** Replaces the global `fetch`. */
  fetch?: typeof globalThis.fetch
}

export interface CallOptions {
  /** Aborts the call, which then throws the signal's reason. */
  signal?: AbortSignal | undefined
  /** Overrides the client's `timeoutMs`. */
  timeoutMs?: number | undefined
}

/** A message in the form of OpenAI's chat API. */
export type Message = { role: 'system' | 'user'; content: string } | AssistantMessage | ToolMessage

export interface AssistantMessage {
  role: 'assistant'
  content: string | null
  /** What the model thought before the content. */
  reasoning_content?: string | null
  tool_calls?: { id: string; type: 'function'; function: { name: string; arguments: string } }[]
}

/** The result of a call. */
export interface ToolMessage {
  role: 'tool'
  content: string
  tool_call_id: string
}

/** A function that the model may ask you to call. */
export interface Tool {
  type: 'function'
  function: {
    name: string
    description?: string
    /** A JSON schema. */
    parameters?: Record<string, unknown>
  }
}

export type ResponseFormat =
  | { type: 'text' | 'json_object' }
  | { type: 'json_schema'; json_schema: { name?: string; description?: string; schema: Record<string, unknown>; strict?: boolean } }

export interface InferenceRequest extends CallOptions {
  /** Set `prompt` or `messages`. */
  prompt?: string
  messages?: Message[]
  /** The system prompt. */
  system?: string
  /** A name from `models()`, or an alias. Default: the default model. */
  model?: string
  maxTokens?: number
  temperature?: number
  topP?: number
  topK?: number
  stop?: string | string[]
  seed?: number
  tools?: Tool[]
  toolChoice?: 'auto' | 'none' | 'required' | { type: 'function'; function: { name: string } }
  responseFormat?: ResponseFormat
  /** Return the log probability of each token. */
  logprobs?: boolean
  /** With `logprobs`: also return this many likely tokens in the place of each. */
  topLogprobs?: number
  /** False: an answer has at most one call. */
  parallelToolCalls?: boolean
  /** How long a model that can think does so. */
  reasoningEffort?: 'none' | 'minimal' | 'low' | 'medium' | 'high' | 'xhigh'
  /** Further variables of the model's chat template, at most 4 KiB. */
  chatTemplateKwargs?: Record<string, unknown>
}

export interface TokenUsage {
  promptTokens: number
  completionTokens: number
  totalTokens: number
  /** The completion tokens that were spent on thoughts. */
  reasoningTokens: number
}

/** A call that the model asks you to run. */
export interface ToolCall {
  /** Goes into `tool_call_id` of the message with the result. */
  id: string
  name: string
  /** JSON as the model wrote it; check it before you use it. */
  arguments: string
}

export interface LogProbability {
  token: string
  logprob: number
  /** The exact content, because a token may be a part of a character. */
  bytes: Uint8Array
  /** The likeliest tokens in its place; as many as `topLogprobs`. */
  top: LogProbability[]
}

export interface Answer {
  text: string
  toolCalls: ToolCall[]
  /** Empty unless `logprobs` asked for them. */
  logprobs: LogProbability[]
  /** What the model thought before the text; empty if it doesn't think. */
  reasoning: string
  /** The answer as a message, to put into `messages` before the results of its calls. */
  message: AssistantMessage
  /** The name of the model that answered. */
  model: string
  usage: TokenUsage
  /** `stop`, `length`, `tool_calls` if the model waits for results, or a value of a newer gateway. */
  finishReason: string
  /** Identifies the request in the log and the ledger, and for support. */
  requestId: string
  responseTimeMs: number
}

/** A piece of a streamed answer; its calls are complete. */
export interface AnswerPiece {
  text: string
  reasoning: string
  toolCalls: ToolCall[]
  logprobs: LogProbability[]
}

/** Iterate it to get the text in pieces. The request is sent on the first read; you can iterate once. */
export declare class AnswerStream implements AsyncIterableIterator<string> {
  private constructor()
  /** The text read so far. */
  get text(): string
  /** What the model thought so far. */
  get reasoning(): string
  /** The calls read so far; each is complete. */
  get toolCalls(): ToolCall[]
  /** Set when the stream has been read to its end. */
  get answer(): Answer | null
  [Symbol.asyncIterator](): this
  next(): Promise<IteratorResult<string, undefined>>
  /** Yields thoughts and calls, too, as they arrive. Iterate either this or the stream. */
  pieces(): AsyncGenerator<AnswerPiece, void, void>
  /** Called when a loop is left early; see `abort`. */
  return(): Promise<IteratorResult<string, undefined>>
  /** Reads the rest. Throws an AbortError if the stream was aborted. */
  finish(): Promise<Answer>
  /** Stops the generation, frees the model and ends a loop over the stream. Safe to call twice, and after the end. */
  abort(): void
}

export interface EmbedRequest extends CallOptions {
  input: string | string[]
  model?: string
  /** Truncates each vector to this many numbers. */
  dimensions?: number
}

export interface Embeddings {
  /** One per text, in the same order. */
  vectors: number[][]
  model: string
  usage: { promptTokens: number; totalTokens: number }
}

export interface Model {
  id: string
  /** True for a model that only creates embeddings. */
  onlyEmbeds: boolean
}

export interface UsageDay {
  /** For example 2026-01-31. */
  date: string
  /** Null for requests without a key. */
  apiKeyId: string | null
  requestCount: number
  tokensUsed: number
}

export interface Usage {
  userId: string
  requestCount: number
  tokensUsed: number
  /** Newest first; at most one year. */
  days: UsageDay[]
}

// Generated from shared/limits.py by `python -m tools.docs`.
export type LimitKind =
  | 'requests_per_hour'
  | 'requests_per_minute'
  | 'tokens_per_minute'
  | 'tokens_per_day'
  | 'tokens_per_month'
  | 'images_per_day'
  | 'concurrency'
// End of the generated part.

export interface QuotaLimit {
  /** `user` or `key`. */
  scope: string
  /** A newer platform may know more kinds. */
  kind: LimitKind | (string & {})
  limit: number
  remaining: number
  /** Seconds until the limit is fully available again. */
  resetsInSeconds: number
}

/** What your account can spend in money. Amounts are exact decimals, in credits. */
export interface Credits {
  /** What a new request may cost; for an account without a bound, balance - reserved. */
  available: string
  /** Prepaid credits; below zero: owed. */
  balance: string
  /** Held by running requests. */
  reserved: string
  /** How far the balance may fall below zero; null without a bound. */
  overage: string | null
}

/** The tokens that your plan includes in its present period. */
export interface Allowance {
  /** Null: as many as you use. */
  included: number | null
  used: number
  /** Held by running requests. */
  held: number
  /** The end of the period, in ISO 8601. Unused tokens are lost. */
  renewsAt: string
}

/** The budget of an API key. Amounts are exact decimals, in credits. */
export interface Budget {
  limit: string
  spent: string
  /** Held by running requests. */
  reserved: string
  available: string
  /** day, week or month: when it is renewed, in UTC; null: never. */
  every: string | null
}

export interface Quota {
  userId: string
  tier: string
  limitPerHour: number
  usedThisHour: number
  remaining: number
  resetsInSeconds: number
  /** Every limit that applies to requests of this key. */
  limits: QuotaLimit[]
  /** Null while the ledger is down. */
  credits: Credits | null
  /** Of the key of this client; null if it has none. */
  budget: Budget | null
  /** Null if the mesh has no plans, or while the ledger is down. */
  allowance: Allowance | null
}

/** Supports any number of concurrent calls. */
export declare class AIInferenceClient {
  /** Throws a TypeError for invalid options. */
  constructor(options: ClientOptions)
  /** The current session; each renewal spends the previous session token. Null for a client with a key. */
  get session(): Session | null
  inference(request: InferenceRequest): Promise<Answer>
  stream(request: InferenceRequest): AnswerStream
  /** Retries are counted once, as for `inference`. Lost vectors of more than 1 MiB throw `AnswerGone`. */
  embed(request: EmbedRequest): Promise<Embeddings>
  /** The models that the key may use, the default first. */
  models(options?: CallOptions): Promise<Model[]>
  usage(options?: CallOptions): Promise<Usage>
  quota(options?: CallOptions): Promise<Quota>
}

/** The properties of an error. */
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

/** The base class. Match on the class or on `code`, which never changes; `message` and `hint` are for people and may change. */
export declare class AimeshError extends Error {
  constructor(message: string, facts?: ErrorFacts)
  /** A code from docs/reference/errors.md, or this client's `connection_failed`, `answer_broken` or `session_ended`. */
  code: string
  /** What to do next; may be empty. */
  hint: string
  /** The HTTP status; null without a complete response. */
  status: number | null
  requestId: string | null
  /** The wrong field, if there is one. */
  param: string | null
  /** When to retry, if the gateway said so. */
  retryAfterMs: number | null
  /** Whether a retry can help. */
  retryable: boolean
}

/** The request is invalid; `param` and the message name the field. */
export declare class BadRequest extends AimeshError {}
/** The prompt leaves no room for an answer in the model's context. */
export declare class ContextExceeded extends BadRequest {}
/** The body or the prompt is too large. */
export declare class TooLarge extends BadRequest {}
/** The credential is missing, unknown, expired or revoked. */
export declare class NotAuthenticated extends AimeshError {}
/** The session is over; log in again. */
export declare class SessionEnded extends NotAuthenticated {}
/** Out of credits; waiting does not help. */
export declare class BudgetExhausted extends AimeshError {}
/** The caller is known, but not allowed to do this. */
export declare class NotAllowed extends AimeshError {}
/** It doesn't exist, or the caller may not see it. */
export declare class NotFound extends AimeshError {}
/** No worker serves this model; the message lists the models that are served. */
export declare class UnknownModel extends NotFound {}
/** It conflicts with existing data. */
export declare class Conflict extends AimeshError {}
/** The idempotency key was used for another request. */
export declare class IdempotencyConflict extends Conflict {}
/** The same request under the same idempotency key is still running. */
export declare class InProgress extends Conflict {}
/** The answer is no longer stored. */
export declare class AnswerGone extends AimeshError {}
/** A rate limit; retry after `retryAfterMs`. */
export declare class RateLimited extends AimeshError {}
/** The request was canceled. */
export declare class Cancelled extends AimeshError {}
/** A part of the platform does not respond; a retry may succeed. */
export declare class Unavailable extends AimeshError {}
/** The platform is at capacity. */
export declare class Overloaded extends Unavailable {}
/** No answer within the caller's `timeoutMs`, or within the gateway's limit. */
export declare class DeadlineExceeded extends AimeshError {}
/** A bug in the platform; its log has details under `requestId`. */
export declare class Internal extends AimeshError {}
/** The gateway was not reachable, or the connection was lost. */
export declare class ConnectionFailed extends AimeshError {}
/** The response was invalid or incomplete. */
export declare class AnswerBroken extends AimeshError {}
