// Reads server-sent events over fetch. Bounded; ends with its signal.

/** @typedef {{event: string, data: string, id: string}} ServerEvent */

/** Our events have a few hundred characters, a page snapshot about ten thousand. */
export const MAX_EVENT_CHARACTERS = 1_000_000
const MAX_ERROR_CHARACTERS = 65_536

/** An error response; `status` is 0 if there was no response. */
export class Refused extends Error {
  /** @param {number} status @param {{code?: string, message?: string, hint?: string}} problem */
  constructor(status, { code = '', message = '', hint = '' } = {}) {
    super(message)
    this.status = status
    this.code = code
    this.hint = hint
  }
}

/** Splits a text stream into events, regardless of chunk boundaries. */
export class EventParser {
  #rest = ''
  #size = 0
  #afterReturn = false
  #event = ''
  #id = ''
  /** @type {string[]} */
  #data = []

  /**
   * @param {string} text
   * @returns {ServerEvent[]}
   */
  push(text) {
    const lines = (this.#rest + (this.#afterReturn ? text.replace(/^\n/, '') : text)).split(/\r\n|\r|\n/)
    this.#afterReturn = text ? text.endsWith('\r') : this.#afterReturn
    this.#rest = lines.pop() ?? ''
    const events = lines.flatMap((line) => this.#take(line))
    if (this.#size + this.#rest.length > MAX_EVENT_CHARACTERS) throw new Refused(0, { code: 'event_too_long' })
    return events
  }

  /** @param {string} line @returns {ServerEvent[]} */
  #take(line) {
    if (line === '') {
      const whole = { event: this.#event || 'message', data: this.#data.join('\n'), id: this.#id }
      const isEvent = this.#data.length > 0
      this.#event = ''
      this.#data = []
      this.#size = 0
      return isEvent ? [whole] : []
    }
    this.#size += line.length
    const [, field, value] = /** @type {RegExpExecArray} */ (/^([^:]*):? ?(.*)$/s.exec(line))
    if (field === 'data') this.#data.push(value)
    else if (field === 'event') this.#event = value
    else if (field === 'id') this.#id = value
    return []
  }
}

/**
 * Sends the request and yields the events of the response.
 * Raises Refused (status 0 when the network failed), or the signal's reason.
 * @param {string} address
 * @param {RequestInit} request
 * @returns {AsyncGenerator<ServerEvent>}
 */
export async function* readEvents(address, request) {
  const headers = { Accept: 'text/event-stream', ...request.headers }
  const response = await orRefused(fetch(address, { ...request, headers, redirect: 'manual' }), request.signal)
  if (!response.ok || !response.headers.get('content-type')?.startsWith('text/event-stream')) throw await toRefused(response)
  const reader = /** @type {ReadableStream<Uint8Array>} */ (response.body).getReader()
  const decoder = new TextDecoder()
  const parser = new EventParser()
  try {
    for (;;) {
      const { value, done } = await orRefused(reader.read(), request.signal)
      if (done) return
      yield* parser.push(decoder.decode(value, { stream: true }))
    }
  } finally {
    // Close the connection, which stops the work on the server.
    reader.cancel().catch(() => {})
  }
}

/** Turns network errors into Refused: browsers report them as TypeError, like programming errors. @template T @param {Promise<T>} promise @param {AbortSignal | null} [signal] */
async function orRefused(promise, signal) {
  try {
    return await promise
  } catch (error) {
    throw signal?.aborted ? error : new Refused(0, { code: 'unreachable' })
  }
}

/** Reads our error object from a response, if there is one. @param {Response} response */
export async function toRefused(response) {
  // The only redirect is to the sign-in page.
  const status = response.type === 'opaqueredirect' ? 401 : response.status
  try {
    const text = await response.text()
    return new Refused(status, JSON.parse(text.slice(0, MAX_ERROR_CHARACTERS)).error ?? {})
  } catch {
    return new Refused(status)
  }
}
