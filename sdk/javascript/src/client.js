// The client of an aimesh platform.

import { AnswerStream } from './answer_stream.js'
import { readAnswer, readEmbeddings, readModels, readQuota, readUsage } from './answers.js'
import { Key, Login, NO_CREDENTIAL } from './bearers.js'
import { Call, INFERENCE_PATH } from './calls.js'
import { Gateway } from './gateway.js'
import { renew } from './logins.js'
import { addressOf, credentialOf, embeddingBody, ensureOptions, inferenceBody, retriesOf, sessionOf, timeoutOf } from './requests.js'

/** @import {Answer, CallOptions, ClientOptions, Embeddings, EmbedRequest, InferenceRequest, Model, Quota, Session, Usage} from '../index.d.ts' */

/** The gateway's default limit for a request. */
const TIMEOUT_MS = 300_000
const MAX_RETRIES = 2

/** Supports any number of concurrent calls. */
export class AIInferenceClient {
  #gateway
  #login
  #timeoutMs
  #maxRetries

  /** @param {ClientOptions} options */
  constructor({ apiKey, session, baseUrl, timeoutMs = TIMEOUT_MS, maxRetries = MAX_RETRIES, fetch = globalThis.fetch }) {
    const address = addressOf(baseUrl)
    const anonymous = new Gateway(address, NO_CREDENTIAL, fetch)
    this.#login = session === undefined ? null : new Login(sessionOf(session, apiKey), (spent) => renew(anonymous, spent))
    this.#gateway = new Gateway(address, this.#login ?? new Key(credentialOf(apiKey)), fetch)
    this.#timeoutMs = timeoutOf(timeoutMs)
    this.#maxRetries = retriesOf(maxRetries)
  }

  /** @returns {Session | null} the current session; each renewal replaces the previous one */
  get session() {
    return this.#login === null ? null : this.#login.session
  }

  /**
   * @param {InferenceRequest} request
   * @returns {Promise<Answer>}
   */
  async inference(request) {
    const body = inferenceBody(request, false)
    return readAnswer(await this.#call(request, true).ask({ method: 'POST', path: INFERENCE_PATH, body }))
  }

  /**
   * The request is sent at the first read.
   * @param {InferenceRequest} request
   * @returns {AnswerStream}
   */
  stream(request) {
    const body = inferenceBody(request, true)
    return new AnswerStream(this.#call(request, true), body)
  }

  /**
   * @param {EmbedRequest} request
   * @returns {Promise<Embeddings>}
   */
  async embed(request) {
    const body = embeddingBody(request)
    return readEmbeddings(await this.#call(request, true).ask({ method: 'POST', path: '/v1/embeddings', body }))
  }

  /**
   * @param {CallOptions} [options]
   * @returns {Promise<Model[]>} the models that the key may use, the default first
   */
  async models(options = {}) {
    return readModels(await this.#read('/v1/models', options))
  }

  /**
   * @param {CallOptions} [options]
   * @returns {Promise<Usage>}
   */
  async usage(options = {}) {
    return readUsage(await this.#read('/api/usage', options))
  }

  /**
   * @param {CallOptions} [options]
   * @returns {Promise<Quota>}
   */
  async quota(options = {}) {
    return readQuota(await this.#read('/api/quota', options))
  }

  /**
   * @param {string} path
   * @param {CallOptions} options
   */
  #read(path, options) {
    ensureOptions(options)
    return this.#call(options, false).ask({ method: 'GET', path })
  }

  /**
   * @param {CallOptions} options
   * @param {boolean} once
   */
  #call({ signal, timeoutMs = this.#timeoutMs }, once) {
    return new Call(this.#gateway, { signal, timeoutMs: timeoutOf(timeoutMs), maxRetries: this.#maxRetries, once })
  }
}
