// Convert the gateway's answers, and check that every field is present and has the right type. Pure.
// Unknown fields are ignored, because a newer gateway may send them.

import { AnswerBroken } from './errors.js'

/** @import {Allowance, Answer, AssistantMessage, Budget, Credits, Embeddings, Model, Quota, QuotaLimit, LogProbability, ToolCall, Usage, UsageDay} from '../index.d.ts' */
/** @typedef {Record<string, unknown>} JsonObject */

/**
 * @typedef {object} Kinds
 * @property {string} string
 * @property {number} number
 * @property {boolean} boolean
 */

/**
 * @typedef {object} Content
 * @property {string} text
 * @property {ToolCall[]} toolCalls
 * @property {LogProbability[]} logprobs
 * @property {string} reasoning
 */

/**
 * @param {unknown} json
 * @param {Content | null} content that of a stream, because its last event contains none
 * @returns {Answer}
 */
export function readAnswer(json, content = null) {
  const answer = object(json, 'the answer')
  const usage = object(answer.usage, 'usage')
  const { text, toolCalls, logprobs, reasoning } = content ?? readContent(answer, 'response')
  return {
    text,
    toolCalls,
    logprobs,
    reasoning,
    message: messageOf(text, toolCalls, reasoning),
    model: field(answer, 'model', 'string'),
    usage: {
      promptTokens: field(usage, 'prompt_tokens', 'number'),
      completionTokens: field(usage, 'completion_tokens', 'number'),
      totalTokens: field(usage, 'total_tokens', 'number'),
      reasoningTokens: usage.reasoning_tokens == null ? 0 : field(usage, 'reasoning_tokens', 'number'),
    },
    finishReason: field(answer, 'finish_reason', 'string'),
    requestId: field(answer, 'request_id', 'string'),
    responseTimeMs: field(answer, 'response_time_ms', 'number'),
  }
}

/**
 * @param {JsonObject} record an answer or a piece of a stream
 * @param {string} name of the field with the text
 * @returns {Content}
 */
export function readContent(record, name) {
  return {
    text: field(record, name, 'string'),
    toolCalls: list(record.tool_calls ?? [], 'tool_calls').map(readCall),
    logprobs: list(record.logprobs ?? [], 'logprobs').map(readLogprob),
    reasoning: record.reasoning == null ? '' : field(record, 'reasoning', 'string'),
  }
}

/**
 * @param {unknown} json
 * @returns {ToolCall}
 */
function readCall(json) {
  const call = object(json, 'a tool call')
  const called = object(call.function, 'function')
  return { id: field(call, 'id', 'string'), name: field(called, 'name', 'string'), arguments: field(called, 'arguments', 'string') }
}

/**
 * @param {unknown} json
 * @returns {LogProbability}
 */
function readLogprob(json) {
  const drawn = object(json, 'a log probability')
  return {
    token: field(drawn, 'token', 'string'),
    logprob: field(drawn, 'logprob', 'number'),
    bytes: Uint8Array.from(list(drawn.bytes, 'bytes').map(finite)),
    top: list(drawn.top_logprobs ?? [], 'top_logprobs').map(readLogprob),
  }
}

/**
 * @param {string} text
 * @param {ToolCall[]} toolCalls
 * @param {string} reasoning
 * @returns {AssistantMessage}
 */
function messageOf(text, toolCalls, reasoning) {
  /** @type {AssistantMessage} */
  const message = { role: 'assistant', content: text, ...(reasoning === '' ? {} : { reasoning_content: reasoning }) }
  if (toolCalls.length === 0) return message
  const calls = toolCalls.map(({ id, name, arguments: written }) => ({
    id,
    type: /** @type {const} */ ('function'),
    function: { name, arguments: written },
  }))
  return { ...message, tool_calls: calls }
}

/**
 * @param {unknown} json
 * @returns {Model[]}
 */
export function readModels(json) {
  return list(object(json, 'the answer').data, 'data').map((each) => {
    const model = object(each, 'a model')
    return { id: field(model, 'id', 'string'), onlyEmbeds: model.only_embeds === true }
  })
}

/**
 * @param {unknown} json
 * @returns {Embeddings}
 */
export function readEmbeddings(json) {
  const answer = object(json, 'the answer')
  const usage = object(answer.usage, 'usage')
  const rows = list(answer.data, 'data').map((each) => object(each, 'an embedding'))
  rows.forEach((row, index) => {
    if (row.index !== index) throw brokenAnswer('the embeddings are not in the order of the texts')
  })
  return {
    vectors: rows.map((row) => list(row.embedding, 'embedding').map(finite)),
    model: field(answer, 'model', 'string'),
    usage: { promptTokens: field(usage, 'prompt_tokens', 'number'), totalTokens: field(usage, 'total_tokens', 'number') },
  }
}

/**
 * @param {unknown} json
 * @returns {Usage}
 */
export function readUsage(json) {
  const answer = object(json, 'the answer')
  return {
    userId: field(answer, 'user_id', 'string'),
    requestCount: field(answer, 'request_count', 'number'),
    tokensUsed: field(answer, 'tokens_used', 'number'),
    days: list(answer.days, 'days').map(readDay),
  }
}

/**
 * @param {unknown} json
 * @returns {UsageDay}
 */
function readDay(json) {
  const day = object(json, 'a day')
  return {
    date: field(day, 'date', 'string'),
    apiKeyId: day.api_key_id === null ? null : field(day, 'api_key_id', 'string'),
    requestCount: field(day, 'request_count', 'number'),
    tokensUsed: field(day, 'tokens_used', 'number'),
  }
}

/**
 * @param {unknown} json
 * @returns {Quota}
 */
export function readQuota(json) {
  const answer = object(json, 'the answer')
  return {
    userId: field(answer, 'user_id', 'string'),
    tier: field(answer, 'tier', 'string'),
    limitPerHour: field(answer, 'limit_per_hour', 'number'),
    usedThisHour: field(answer, 'used_this_hour', 'number'),
    remaining: field(answer, 'remaining', 'number'),
    resetsInSeconds: field(answer, 'resets_in_seconds', 'number'),
    limits: list(answer.limits, 'limits').map(readLimit),
    credits: answer.credits == null ? null : readCredits(object(answer.credits, 'credits')),
    budget: answer.budget == null ? null : readBudget(object(answer.budget, 'budget')),
    allowance: answer.allowance == null ? null : readAllowance(object(answer.allowance, 'allowance')),
  }
}

/**
 * @param {JsonObject} credits
 * @returns {Credits}
 */
function readCredits(credits) {
  return {
    available: field(credits, 'available', 'string'),
    balance: field(credits, 'balance', 'string'),
    reserved: field(credits, 'reserved', 'string'),
    overage: credits.overage == null ? null : field(credits, 'overage', 'string'),
  }
}

/**
 * @param {JsonObject} allowance
 * @returns {Allowance}
 */
function readAllowance(allowance) {
  return {
    included: allowance.included == null ? null : field(allowance, 'included', 'number'),
    used: field(allowance, 'used', 'number'),
    held: field(allowance, 'held', 'number'),
    renewsAt: field(allowance, 'renews_at', 'string'),
  }
}

/**
 * @param {JsonObject} budget
 * @returns {Budget}
 */
function readBudget(budget) {
  return {
    limit: field(budget, 'limit', 'string'),
    spent: field(budget, 'spent', 'string'),
    reserved: field(budget, 'reserved', 'string'),
    available: field(budget, 'available', 'string'),
    every: budget.every == null ? null : field(budget, 'every', 'string'),
  }
}

/**
 * @param {unknown} json
 * @returns {QuotaLimit}
 */
function readLimit(json) {
  const limit = object(json, 'a limit')
  return {
    scope: field(limit, 'scope', 'string'),
    kind: field(limit, 'kind', 'string'),
    limit: field(limit, 'limit', 'number'),
    remaining: field(limit, 'remaining', 'number'),
    resetsInSeconds: field(limit, 'resets_in_seconds', 'number'),
  }
}

/**
 * @param {string} text
 * @returns {unknown}
 */
export function readJson(text) {
  try {
    return JSON.parse(text)
  } catch (error) {
    throw brokenAnswer('the response is not JSON', error)
  }
}

/**
 * @param {unknown} value
 * @param {string} what
 * @returns {JsonObject}
 */
export function object(value, what) {
  if (typeof value === 'object' && value !== null && !Array.isArray(value)) return /** @type {JsonObject} */ (value)
  throw brokenAnswer(`${what} is not an object`)
}

/**
 * @template {keyof Kinds} K
 * @param {JsonObject} record
 * @param {string} name
 * @param {K} kind
 * @returns {Kinds[K]}
 */
export function field(record, name, kind) {
  if (typeof record[name] === kind) return /** @type {Kinds[K]} */ (record[name])
  throw brokenAnswer(`${name} is not a ${kind}`)
}

/**
 * @param {unknown} value
 * @param {string} name
 * @returns {unknown[]}
 */
function list(value, name) {
  if (Array.isArray(value)) return value
  throw brokenAnswer(`${name} is not a list`)
}

/**
 * @param {unknown} value
 * @returns {number}
 */
function finite(value) {
  if (typeof value === 'number' && Number.isFinite(value)) return value
  throw brokenAnswer('a vector contains something other than numbers')
}

/**
 * @param {string} what
 * @param {unknown} [cause]
 * @returns {AnswerBroken}
 */
export function brokenAnswer(what, cause) {
  return new AnswerBroken(what, {
    code: 'answer_broken',
    hint: 'check that baseUrl is the address of an aimesh gateway, and that no proxy changes its responses',
    cause,
  })
}
