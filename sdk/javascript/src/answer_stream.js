// An answer that is read while it is made. A connection that breaks is made anew, and the text goes on where it stopped.

import { broken, field, object, readAnswer, readJson } from './answers.js'
import { INFERENCE_PATH } from './calls.js'
import { Deadline } from './deadline.js'
import { AimeshError, ConnectionFailed, fromAnswer } from './errors.js'
import { EventStreamParser } from './event_stream.js'
import { passesOn } from './retries.js'

/** @import {Answer} from '../index.d.ts' */
/** @import {Call} from './calls.js' */
/** @import {ServerEvent} from './event_stream.js' */

/** The gateway says something every 15 s, if only that it is still there. */
const SILENCE_MS = 60_000
/** For the end of a stream whose answer is here: the connection is then good for the next call. */
const LINGER_MS = 250
const EVENT_ID = /^[!-~]{1,240}-(\d{1,9})$/

/** @implements {AsyncIterableIterator<string>} */
export class AnswerStream {
  #call
  #body
  #silenceMs
  #pieces
  #isAborted = false
  /** Why there is no answer. @type {unknown} */
  #why = null
  /** The id of the last event that told text, and its number. @type {string | null} */
  #lastId = null
  #lastNumber = 0
  /** Text came without an id, so that nobody can say where to go on. */
  #isUnnumbered = false
  #text = ''
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

  /** @returns {string} all that was read until now */
  get text() {
    return this.#text
  }

  /** @returns {Answer | null} there when the stream was read to its end */
  get answer() {
    return this.#answer
  }

  [Symbol.asyncIterator]() {
    return this
  }

  /** @returns {Promise<IteratorResult<string, undefined>>} */
  async next() {
    try {
      return await this.#pieces.next()
    } catch (error) {
      this.#why = error
      if (this.#isAborted) return { done: true, value: undefined }
      throw error
    }
  }

  /**
   * A loop that is left before the end calls it.
   * @returns {Promise<IteratorResult<string, undefined>>}
   */
  async return() {
    this.abort()
    await this.#pieces.return(undefined)
    return { done: true, value: undefined }
  }

  /**
   * Reads what is left.
   * @returns {Promise<Answer>}
   */
  async finish() {
    while (!(await this.next()).done);
    if (this.#answer === null) throw this.#why ?? this.#call.signal.reason
    return this.#answer
  }

  /** Nobody wants the rest: the model is free, and a loop over the stream ends. Safe to call twice, and after the end. */
  abort() {
    if (this.#answer !== null || this.#call.signal.aborted) return
    this.#isAborted = true
    this.#call.deadline.stop(new DOMException('the stream was aborted', 'AbortError'))
    this.#call.leave(this.#call.signal.reason)
  }

  /** @returns {AsyncGenerator<string, undefined, void>} */
  async *#run() {
    try {
      while (this.#answer === null) {
        try {
          yield* this.#attempt()
        } catch (error) {
          if (this.#text !== '' && !this.#canGoOn(error)) throw error
          await this.#call.waitAfter(error)
        }
      }
    } catch (error) {
      if (!this.#isAborted) this.#call.leave(error)
      throw error
    } finally {
      this.#call.deadline.end()
    }
  }

  /** @param {unknown} error */
  #canGoOn(error) {
    return !this.#isUnnumbered && error instanceof AimeshError && passesOn(error)
  }

  /**
   * One connection: the pieces that are new.
   * @returns {AsyncGenerator<string, void, void>}
   */
  async *#attempt() {
    const silence = new Deadline(this.#silenceMs, this.#call.signal, silent)
    try {
      const asked = this.#call.sent({ method: 'POST', path: INFERENCE_PATH, body: this.#body, headers: this.#lastSeen() })
      silence.begin()
      const response = await this.#call.gateway.open(asked, silence.signal)
      ensureEvents(response)
      const parser = new EventStreamParser()
      for await (const bytes of this.#call.gateway.read(response, silence.signal)) {
        // While the caller is busy with a piece, nobody listens.
        silence.hold()
        for (const event of parser.feed(bytes)) {
          const piece = this.#take(event)
          if (piece !== '') yield piece
          this.#call.signal.throwIfAborted()
        }
        silence.renew(this.#answer === null ? this.#silenceMs : LINGER_MS)
      }
    } catch (error) {
      // Whatever becomes of the connection behind the answer.
      if (this.#answer === null) throw error
    } finally {
      silence.end()
    }
    if (this.#answer === null) throw unfinished()
  }

  /** @returns {Record<string, string>} */
  #lastSeen() {
    return this.#lastId === null ? {} : { 'last-event-id': this.#lastId }
  }

  /**
   * @param {ServerEvent} event
   * @returns {string} the text that is new; empty for none
   */
  #take({ data, id }) {
    if (this.#answer !== null || data === '[DONE]') return ''
    const said = object(readJson(data), 'an event')
    if (Object.hasOwn(said, 'error')) throw fromAnswer(null, said)
    if (Object.hasOwn(said, 'text')) return this.#takeText(field(said, 'text', 'string'), id)
    // Any other is for a newer client than this one.
    if (Object.hasOwn(said, 'finish_reason')) this.#answer = readAnswer(said, this.#text)
    return ''
  }

  /**
   * @param {string} text
   * @param {string | null} id
   */
  #takeText(text, id) {
    const number = Number(EVENT_ID.exec(id ?? '')?.[1] ?? 0)
    if (number > 0) {
      // Told before the connection broke: a gateway that begins anew.
      if (number <= this.#lastNumber) return ''
      this.#lastId = id
      this.#lastNumber = number
    } else this.#isUnnumbered = true
    this.#text += text
    this.#call.progressed()
    return text
  }
}

/** @param {Response} response */
function ensureEvents(response) {
  const type = response.headers.get('content-type') ?? ''
  if (!/^text\/event-stream\b/i.test(type))
    throw broken(`a stream of events was asked for, and ${type.slice(0, 100) || 'something else'} came`)
}

function unfinished() {
  return new ConnectionFailed('the stream ended before its answer did', { code: 'connection_failed', retryable: true })
}

/** @param {number} milliseconds */
function silent(milliseconds) {
  const hint = 'something between here and the gateway may hold its answers back'
  return new ConnectionFailed(`nothing came for ${milliseconds} ms`, { code: 'connection_failed', hint, retryable: true })
}
