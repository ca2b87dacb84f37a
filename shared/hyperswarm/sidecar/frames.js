'use strict'
// Frames between Python and the sidecar (../protocol.md): cuts what arrives into frames, gathers what leaves into few writes.

const HEADER = 9
/** Room for a firewall of 100,000 keys; everything else is far smaller. */
const MAX_FRAME = 4 * 1024 * 1024
/** Larger payloads leave by reference, smaller ones are copied beside their neighbours. */
const COPIED = 4096
const SLAB = 256 * 1024

const FROM_PYTHON = {
  HELLO: 0x01,
  JOIN: 0x02,
  LEAVE: 0x03,
  JOIN_PEER: 0x04,
  LEAVE_PEER: 0x05,
  FIREWALL: 0x06,
  STATS: 0x07,
  REFRESH: 0x08,
  FLUSH: 0x09,
  RESPONSE: 0x21,
}
const BOTH_WAYS = { PART: 0x10, DATA: 0x11, CLOSE: 0x12, CREDIT: 0x13 }
const TO_PYTHON = { REQUEST: 0x20, READY: 0x81, ACK: 0x82, EVENT: 0x83, OPEN: 0x84, PATH: 0x85 }

class BadFrame extends Error {}

/** Calls onFrame(type, id, chunk, start, end) for each frame; the payload is chunk[start..end), the byte before it is free for use. */
class Parser {
  constructor(onFrame) {
    this.onFrame = onFrame
    this.waiting = []
    this.size = 0
    this.needed = HEADER
  }

  feed(chunk) {
    if (this.size > 0) {
      this.waiting.push(chunk)
      this.size += chunk.length
      if (this.size < this.needed) return
      chunk = Buffer.concat(this.waiting, this.size)
      this.waiting = []
      this.size = 0
    }
    let at = 0
    this.needed = HEADER
    while (chunk.length - at >= HEADER) {
      const length = chunk.readUInt32LE(at)
      if (length < 5 || length > MAX_FRAME) throw new BadFrame(`a frame of ${length} bytes`)
      const end = at + 4 + length
      if (end > chunk.length) {
        this.needed = 4 + length
        break
      }
      this.onFrame(chunk[at + 4], chunk.readUInt32LE(at + 5), chunk, at + HEADER, end)
      at = end
    }
    if (at < chunk.length) {
      this.waiting.push(chunk.subarray(at))
      this.size = chunk.length - at
    }
  }
}

/** Writes frames to `socket`: those of one turn of the event loop as one write. */
class Outbox {
  constructor(socket) {
    this.socket = socket
    this.slab = Buffer.allocUnsafeSlow(SLAB)
    this.start = 0
    this.end = 0
    this.scheduled = false
    this.flush = this.flush.bind(this)
  }

  send(type, id, payload) {
    const size = payload === null ? 0 : payload.length
    const copied = size <= COPIED
    if (SLAB - this.end < HEADER + (copied ? size : 0)) this._newSlab()
    const slab = this.slab
    let at = this.end
    slab.writeUInt32LE(5 + size, at)
    slab[at + 4] = type
    slab.writeUInt32LE(id, at + 5)
    at += HEADER
    if (copied && size > 0) {
      slab.set(payload, at)
      at += size
    }
    this.end = at
    if (!this.scheduled) {
      this.scheduled = true
      this.socket.cork()
      setImmediate(this.flush)
    }
    if (!copied) {
      this._writeSlab()
      this.socket.write(payload)
    }
  }

  json(type, id, value) {
    this.send(type, id, Buffer.from(JSON.stringify(value)))
  }

  flush() {
    this.scheduled = false
    this._writeSlab()
    this.socket.uncork()
  }

  _writeSlab() {
    if (this.end > this.start) this.socket.write(this.slab.subarray(this.start, this.end))
    this.start = this.end
  }

  _newSlab() {
    this._writeSlab()
    this.slab = Buffer.allocUnsafeSlow(SLAB)
    this.start = this.end = 0
  }
}

module.exports = { FROM_PYTHON, BOTH_WAYS, TO_PYTHON, BadFrame, Parser, Outbox, MAX_FRAME }
