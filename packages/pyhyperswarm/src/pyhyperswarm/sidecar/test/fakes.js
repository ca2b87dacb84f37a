'use strict'
// Fakes for the tests: a hand-made frame, a socket that records writes, a stream without a network.

const { EventEmitter } = require('node:events')

function frame(type, id, payload = Buffer.alloc(0)) {
  const head = Buffer.alloc(9)
  head.writeUInt32LE(5 + payload.length, 0)
  head[4] = type
  head.writeUInt32LE(id, 5)
  return Buffer.concat([head, payload])
}

function collector() {
  const written = []
  return { written, write: (chunk) => written.push(chunk) }
}

/** A secret-stream as far as a Connection uses one. */
class Stream extends EventEmitter {
  constructor(isInitiator) {
    super()
    this.isInitiator = isInitiator
    this.remotePublicKey = Buffer.alloc(32, 1)
    this.rawStream = Object.assign(new EventEmitter(), { remoteHost: '203.0.113.5', remotePort: 4737, socket: {} })
    this.written = []
    this.failure = null
    this.isDestroyed = false
    this._len = 0
    this._writableState = { buffered: 0 }
    /** What `write` returns: whether there is room. */
    this.hasRoom = true
  }

  setKeepAlive() {}
  setTimeout() {}

  alloc(length) {
    return Buffer.alloc(length)
  }

  write(message) {
    this.written.push(message)
    return this.hasRoom
  }

  end() {
    this.destroy()
  }

  get destroying() {
    return this.isDestroyed
  }

  destroy(error) {
    if (this.isDestroyed) return
    this.isDestroyed = true
    this.failure = error ?? null
    if (error) this.emit('error', error)
    this.emit('close')
  }
}

module.exports = { frame, collector, Stream }
