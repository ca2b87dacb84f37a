// Stream an answer. If the connection breaks, the stream resumes after the last piece.

import { brokenAnswer, object, readAnswer, readContent, readJson } from './answers.js'
import { INFERENCE_PATH } from './calls.js'
import { Deadline } from './deadline.js'
import { AimeshError, ConnectionFailed, fromAnswer } from './errors.js'
import { EventStreamParser } from './event_stream.js'
import { canResumeAfter } from './retries.js'

/** @import {Answer, AnswerPiece, LogProbability, ToolCall} from '../index.d.ts' */
/** @import {Content} from './answers.js' */
/** @import {Call} from './calls.js' */
/** @import {ServerEvent} from './event_stream.js' */

/** The gateway sends at least a comment every 15 s. */
const SILENCE_MS = 60_000
/** Wait this long for the end of a complete stream, so that the connection can be reused. */
const LINGER_MS = 250
const EVENT_ID = /^[!-~]{1,240}-(\d{1,9})$/

/** @implements {AsyncIterableIterator<string>} */
export class AnswerStream {
  #call
  #body
  #silenceMs
  #pieces
  #isAborted = false
  /** The reason for a missing answer. @type {unknown} */
  #failure = null
  /** The id of the last event with text, and its number. @type {string | null} */
  #lastId = null
  #lastNumber = 0
  /** Content arrived without an id, so the stream cannot be resumed. */
  #isUnnumbered = false
  #hasContent = false
  #text = ''
  #reasoning = ''
  /** @type {ToolCall[]} */
  #toolCalls = []
  /** @type {LogProbability[]} */
  #logprobs = []
  /** @type {Answer | null} */
  #answer = null

  /**
   * @param {Call} call
   * @param {string} body
   */
  constructor(call, body, { silenceMs = SILENCE_MS } = {}) {
    this.#call = call
    this.#body = body
    this.#silenceMs = silenceMs
    this.#pieces = this.#run()
  }

  /** @returns {string} the text read so far */
  get text() {
    return this.#text
  }

  /** @returns {string} what the model thought so far */
  get reasoning() {
    return this.#reasoning
  }

  /** @returns {ToolCall[]} the calls read so far; each is complete */
  get toolCalls() {
    return [...this.#toolCalls]
  }

  /** @returns {Answer | null} set when the stream was read to its end */
  get answer() {
    return this.#answer
  }

  [Symbol.asyncIterator]() {
    return this
  }

  /** @returns {Promise<IteratorResult<string, undefined>>} */
  async next() {
    for (;;) {
      const { done, value } = await this.#next()
      if (done || !value) return { done: true, value: undefined }
      if (value.text !== '') return { done: false, value: value.text }
    }
  }

  /**
   * Yield thoughts and calls, too, as they arrive. Iterate either this or the stream.
   * @returns {AsyncGenerator<AnswerPiece, void, void>}
   */
  async *pieces() {
    try {
      for (;;) {
        const { done, value } = await this.#next()
        if (done || !value) return
        yield value
      }
    } finally {
      await this.return()
    }
  }

  /** @returns {Promise<IteratorResult<AnswerPiece, void>>} */
  async #next() {
    try {
      return await this.#pieces.next()
    } catch (error) {
      this.#failure = error
      if (this.#isAborted) return { done: true, value: undefined }
      throw error
    }
  }

  /**
   * Called when a loop is left early.
   * @returns {Promise<IteratorResult<string, undefined>>}
   */
  async return() {
    this.abort()
    await this.#pieces.return(undefined)
    return { done: true, value: undefined }
  }

  /**
   * Read the rest.
   * @returns {Promise<Answer>}
   */
  async finish() {
    while (!(await this.next()).done);
    if (this.#answer === null) throw this.#failure ?? this.#call.signal.reason
    return this.#answer
  }

  /** Stop the generation and end a loop over the stream. Safe to call twice, and after the end. */
  abort() {
    if (this.#answer !== null || this.#call.signal.aborted) return
    this.#isAborted = true
    this.#call.deadline.stop(new DOMException('the stream was aborted', 'AbortError'))
    this.#call.cancelUnlessAnswered(this.#call.signal.reason)
  }

  /** @returns {AsyncGenerator<AnswerPiece, undefined, void>} */
  async *#run() {
    try {
      while (this.#answer === null) {
        try {
          yield* this.#attempt()
        } catch (error) {
          if (this.#hasContent && !this.#canResume(error)) throw error
          await this.#call.waitAfter(error)
        }
      }
    } catch (error) {
      if (!this.#isAborted) this.#call.cancelUnlessAnswered(error)
      throw error
    } finally {
      this.#call.deadline.end()
    }
  }

  /** @param {unknown} error */
  #canResume(error) {
    return !this.#isUnnumbered && error instanceof AimeshError && canResumeAfter(error)
  }

  /**
   * Yield the new pieces of one connection.
   * @returns {AsyncGenerator<AnswerPiece, void, void>}
   */
  async *#attempt() {
    const silence = new Deadline(this.#silenceMs, this.#call.signal, silenceError)
    try {
      const request = this.#call.prepare({ method: 'POST', path: INFERENCE_PATH, body: this.#body, headers: this.#resumeHeaders() })
      silence.begin()
      const response = await this.#call.gateway.open(request, silence.signal)
      ensureEvents(response)
      const parser = new EventStreamParser()
      for await (const bytes of this.#call.gateway.read(response, silence.signal)) {
        // No timeout while the caller processes a piece.
        silence.hold()
        for (const event of parser.feed(bytes)) {
          const piece = this.#handleEvent(event)
          if (piece !== null) yield piece
          this.#call.signal.throwIfAborted()
        }
        silence.renew(this.#answer === null ? this.#silenceMs : LINGER_MS)
      }
    } catch (error) {
      // After the answer, a broken connection does not matter.
      if (this.#answer === null) throw error
    } finally {
      silence.end()
    }
    if (this.#answer === null) throw unfinishedError()
  }

  /** @returns {Record<string, string>} */
  #resumeHeaders() {
    return this.#lastId === null ? {} : { 'last-event-id': this.#lastId }
  }

  /**
   * @param {ServerEvent} event
   * @returns {AnswerPiece | null} the new piece, if there is one
   */
  #handleEvent({ data, id }) {
    if (this.#answer !== null || data === '[DONE]') return null
    const payload = object(readJson(data), 'an event')
    if (Object.hasOwn(payload, 'error')) throw fromAnswer(null, payload)
    if (Object.hasOwn(payload, 'text')) return this.#addContent(readContent(payload, 'text'), id)
    // Ignore unknown events of newer gateways.
    if (Object.hasOwn(payload, 'finish_reason')) {
      this.#answer = readAnswer(payload, {
        text: this.#text,
        toolCalls: this.#toolCalls,
        logprobs: this.#logprobs,
        reasoning: this.#reasoning,
      })
    }
    return null
  }

  /**
   * @param {Content} content
   * @param {string | null} id
   * @returns {AnswerPiece | null} the new piece, if there is one
   */
  #addContent({ text, toolCalls, logprobs, reasoning }, id) {
    if (text === '' && reasoning === '' && toolCalls.length === 0 && logprobs.length === 0) return null
    const number = Number(EVENT_ID.exec(id ?? '')?.[1] ?? 0)
    if (number > 0) {
      // The gateway repeats text instead of resuming.
      if (number <= this.#lastNumber) return null
      this.#lastId = id
      this.#lastNumber = number
    } else this.#isUnnumbered = true
    this.#hasContent = true
    this.#text += text
    this.#reasoning += reasoning
    this.#toolCalls.push(...toolCalls)
    for (const token of logprobs) this.#logprobs.push(token)
    this.#call.resetFailures()
    return { text, reasoning, toolCalls, logprobs }
  }
}

/** @param {Response} response */
function ensureEvents(response) {
  const type = response.headers.get('content-type') ?? ''
  if (!/^text\/event-stream\b/i.test(type))
    throw brokenAnswer(`the response is ${type.slice(0, 100) || 'without a content type'}, not a stream of events`)
}

function unfinishedError() {
  return new ConnectionFailed('the stream ended before the answer was complete', { code: 'connection_failed', retryable: true })
}

/** @param {number} milliseconds */
function silenceError(milliseconds) {
  const hint = 'a proxy between the client and the gateway may be buffering responses'
  return new ConnectionFailed(`the gateway sent nothing for ${milliseconds} ms`, { code: 'connection_failed', hint, retryable: true })
}
