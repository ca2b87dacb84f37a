// Parse server-sent events from bytes in any pieces, as in the HTML standard, "event stream interpretation", with limits. Pure.

import { brokenAnswer } from './answers.js'

/**
 * Includes line breaks. Most events have a few hundred bytes. A cached answer arrives in one event with up to 1 MiB of text, and JSON
 * escapes make that at most six times as long.
 */
export const MAX_EVENT_BYTES = 8 * 1024 * 1024

const LF = 10
const CR = 13
const BOM = '\uFEFF'

/**
 * @typedef {object} ServerEvent
 * @property {string} data
 * @property {string | null} id the event's own id; browsers would repeat that of an earlier event
 */

export class EventStreamParser {
  /** The parts of the unfinished line. @type {Uint8Array[]} */
  #parts = []
  #eventBytes = 0
  #afterReturn = false
  #isFirstLine = true
  /** @type {string[]} */
  #data = []
  /** @type {string | null} */
  #id = null
  // `fatal`, because otherwise invalid bytes would be replaced silently.
  #decoder = new TextDecoder('utf-8', { fatal: true, ignoreBOM: true });

  /**
   * @param {Uint8Array} bytes
   * @returns {Generator<ServerEvent, void, void>} the events that are complete now; read all of them
   * @throws AnswerBroken for invalid UTF-8 and events that are too long; the parser is then unusable
   */
  *feed(bytes) {
    let begin = 0
    for (let at = 0; at < bytes.length; at++) {
      const byte = bytes[at]
      const isSecondHalf = byte === LF && this.#afterReturn
      this.#afterReturn = byte === CR
      if (byte !== LF && byte !== CR) continue
      if (!isSecondHalf) {
        this.#keep(bytes.subarray(begin, at))
        const event = this.#endLine()
        if (event !== null) yield event
      }
      begin = at + 1
    }
    this.#keep(bytes.subarray(begin))
  }

  /** @param {Uint8Array} part */
  #keep(part) {
    if (part.length === 0) return
    this.#eventBytes += part.length
    if (this.#eventBytes > MAX_EVENT_BYTES) throw brokenAnswer('an event of the stream has no end')
    // Copy, because the caller may reuse the chunk.
    this.#parts.push(part.slice())
  }

  /** @returns {ServerEvent | null} */
  #endLine() {
    let line = this.#decode()
    if (this.#isFirstLine && line.startsWith(BOM)) line = line.slice(1)
    this.#isFirstLine = false
    if (line === '') return this.#endEvent()
    this.#eventBytes += 1
    const colon = line.indexOf(':')
    const field = colon < 0 ? line : line.slice(0, colon)
    const value = colon < 0 ? '' : line.slice(colon + (line[colon + 1] === ' ' ? 2 : 1))
    if (field === 'data') this.#data.push(value)
    else if (field === 'id' && !value.includes('\0')) this.#id = value || null
    return null
  }

  /** @returns {ServerEvent | null} */
  #endEvent() {
    this.#eventBytes = 0
    if (this.#data.length === 0) {
      this.#id = null
      return null
    }
    const event = { data: this.#data.join('\n'), id: this.#id }
    this.#data = []
    this.#id = null
    return event
  }

  /** @returns {string} */
  #decode() {
    const parts = this.#parts
    this.#parts = []
    try {
      return this.#decoder.decode(parts.length === 1 ? parts[0] : concatenated(parts))
    } catch (error) {
      throw brokenAnswer('the stream is not UTF-8', error)
    }
  }
}

/**
 * @param {Uint8Array[]} parts
 * @returns {Uint8Array}
 */
export function concatenated(parts) {
  const whole = new Uint8Array(parts.reduce((size, part) => size + part.length, 0))
  let at = 0
  for (const part of parts) {
    whole.set(part, at)
    at += part.length
  }
  return whole
}
