// Convert the gateway's answers, and check that every field is there and of its type. Pure.
// Unknown fields are ignored, because a newer gateway may send them.

import { AnswerBroken } from './errors.js'

/** @import {Answer, Embeddings, Model, Quota, QuotaLimit, Usage, UsageDay} from '../index.d.ts' */
/** @typedef {Record<string, unknown>} Said */

/**
 * @typedef {object} Kinds
 * @property {string} string
 * @property {number} number
 * @property {boolean} boolean
 */

/**
 * @param {unknown} json
 * @param {string | null} text the text of a stream, whose last event has none
 * @returns {Answer}
 */
export function readAnswer(json, text = null) {
  const said = object(json, 'the answer')
  const usage = object(said.usage, 'usage')
  return {
    text: text ?? field(said, 'response', 'string'),
    model: field(said, 'model', 'string'),
    usage: {
      promptTokens: field(usage, 'prompt_tokens', 'number'),
      completionTokens: field(usage, 'completion_tokens', 'number'),
      totalTokens: field(usage, 'total_tokens', 'number'),
    },
    finishReason: field(said, 'finish_reason', 'string'),
    requestId: field(said, 'request_id', 'string'),
    responseTimeMs: field(said, 'response_time_ms', 'number'),
  }
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
  const said = object(json, 'the answer')
  const usage = object(said.usage, 'usage')
  const rows = list(said.data, 'data').map((each) => object(each, 'an embedding'))
  rows.forEach((row, index) => {
    if (row.index !== index) throw broken('the embeddings are not in the order of the texts')
  })
  return {
    vectors: rows.map((row) => list(row.embedding, 'embedding').map(finite)),
    model: field(said, 'model', 'string'),
    usage: { promptTokens: field(usage, 'prompt_tokens', 'number'), totalTokens: field(usage, 'total_tokens', 'number') },
  }
}

/**
 * @param {unknown} json
 * @returns {Usage}
 */
export function readUsage(json) {
  const said = object(json, 'the answer')
  return {
    userId: field(said, 'user_id', 'string'),
    requestCount: field(said, 'request_count', 'number'),
    tokensUsed: field(said, 'tokens_used', 'number'),
    days: list(said.days, 'days').map(readDay),
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
  const said = object(json, 'the answer')
  return {
    userId: field(said, 'user_id', 'string'),
    tier: field(said, 'tier', 'string'),
    limitPerHour: field(said, 'limit_per_hour', 'number'),
    usedThisHour: field(said, 'used_this_hour', 'number'),
    remaining: field(said, 'remaining', 'number'),
    resetsInSeconds: field(said, 'resets_in_seconds', 'number'),
    limits: list(said.limits, 'limits').map(readLimit),
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
    throw broken('the response is not JSON', error)
  }
}

/**
 * @param {unknown} value
 * @param {string} what
 * @returns {Said}
 */
export function object(value, what) {
  if (typeof value === 'object' && value !== null && !Array.isArray(value)) return /** @type {Said} */ (value)
  throw broken(`${what} is not an object`)
}

/**
 * @template {keyof Kinds} K
 * @param {Said} said
 * @param {string} name
 * @param {K} kind
 * @returns {Kinds[K]}
 */
export function field(said, name, kind) {
  if (typeof said[name] === kind) return /** @type {Kinds[K]} */ (said[name])
  throw broken(`${name} is not a ${kind}`)
}

/**
 * @param {unknown} value
 * @param {string} name
 * @returns {unknown[]}
 */
function list(value, name) {
  if (Array.isArray(value)) return value
  throw broken(`${name} is not a list`)
}

/**
 * @param {unknown} value
 * @returns {number}
 */
function finite(value) {
  if (typeof value === 'number' && Number.isFinite(value)) return value
  throw broken('a vector contains something other than numbers')
}

/**
 * @param {string} what
 * @param {unknown} [cause]
 * @returns {AnswerBroken}
 */
export function broken(what, cause) {
  return new AnswerBroken(what, {
    code: 'answer_broken',
    hint: 'check that baseUrl is the address of an aimesh gateway, and that no proxy changes its responses',
    cause,
  })
}
