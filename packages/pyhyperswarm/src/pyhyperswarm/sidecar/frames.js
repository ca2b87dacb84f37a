'use strict'
// Frames between Python and the sidecar (../protocol.md): parses them, and joins outgoing ones into few writes.

const HEADER = 9
/** Enough for a firewall of 100,000 keys. Everything else is far smaller. */
const MAX_FRAME = 8 * 1024 * 1024
const TYPE = {
  HELLO: 0x01,
  CALL: 0x02,
  PART: 0x10,
  DATA: 0x11,
  CLOSE: 0x12,
  CREDIT: 0x13,
  REQUEST: 0x20,
  RESPONSE: 0x21,
  READY: 0x81,
  ANSWER: 0x82,
  EVENT: 0x83,
  OPEN: 0x84,
}
const EMPTY = Buffer.alloc(0)

class BadFrame extends Error {}

/** Calls onFrame(type, id, chunk, begin, end): the payload is chunk[begin..end), and the byte before it may be overwritten. */
class Parser {
  constructor(onFrame) {
    Object.assign(this, { onFrame, waiting: [], size: 0, needed: HEADER })
  }

  feed(chunk) {
    this.waiting.push(chunk)
    this.size += chunk.length
    if (this.size < this.needed) return
    const whole = this.waiting.length === 1 ? chunk : Buffer.concat(this.waiting, this.size)
    let at = 0
    this.needed = HEADER
    while (whole.length - at >= this.needed) {
      const length = whole.readUInt32LE(at)
      if (length < HEADER - 4 || length > MAX_FRAME) throw new BadFrame(`a frame of ${length} bytes`)
      const end = at + 4 + length
      this.needed = 4 + length
      if (end > whole.length) break
      this.onFrame(whole[at + 4], whole.readUInt32LE(at + 5), whole, at + HEADER, end)
      at = end
      this.needed = HEADER
    }
    this.waiting = at < whole.length ? [whole.subarray(at)] : []
    this.size = whole.length - at
  }
}

/** Writes the frames of one event loop turn together. */
class Outbox {
  constructor(socket) {
    Object.assign(this, { socket, pending: [], flush: this.flush.bind(this) })
  }

  send(type, id, payload = EMPTY) {
    const header = Buffer.allocUnsafe(HEADER)
    header.writeUInt32LE(HEADER - 4 + payload.length, 0)
    header[4] = type
    header.writeUInt32LE(id, 5)
    if (this.pending.push(header, payload) === 2) setImmediate(this.flush)
  }

  json(type, id, value) {
    this.send(type, id, Buffer.from(JSON.stringify(value)))
  }

  flush() {
    this.socket.write(Buffer.concat(this.pending))
    this.pending = []
  }
}

module.exports = { TYPE, MAX_FRAME, BadFrame, Parser, Outbox }
