'use strict'
// The peer wire (../protocol.md): the preface that proves a connection alive, messages, and the credit that bounds them.

const { BOTH_WAYS, TO_PYTHON } = require('./frames')
const { KEEP_ALIVE_MS, SILENCE_MS } = require('./network')

const DATA = 0
const CREDIT = 1
const PART = 2
const PREFACE = 0x48
const VERSION = 1
/** "Open" is not "alive": without the peer's preface by then, the stream goes and Hyperswarm dials again. */
const PREFACE_MS = 1500
/** What a message costs besides its bytes, so that empty ones are not free. */
const OVERHEAD = 32
/** Larger messages travel in parts. */
const MAX_PART = 64 * 1024
/** The three bytes of length that secret-stream reads, and its 17 of authentication, kind and ours. */
const MAX_SEALED = MAX_PART + 64

class Connection {
  constructor(id, stream, info, owner) {
    this.id = id
    this.stream = stream
    this.info = info
    this.owner = owner
    this.isOpen = false
    this.isClosedByUs = false
    this.failure = null
    /** What the peer may still send. */
    this.allowance = owner.firstBytes
    this.path = 'direct'
    stream.setKeepAlive(KEEP_ALIVE_MS)
    stream.setTimeout(SILENCE_MS)
    this.deadline = setTimeout(() => this.fail('NO_PREFACE', 'the peer sent no preface'), PREFACE_MS)
    stream.on('data', (message) => (this.isOpen ? this._onMessage(message) : this._onPreface(message)))
    stream.on('error', (error) => {
      this.failure = error
    })
    stream.on('end', () => stream.end())
    stream.once('close', () => this._onClose())
    stream.rawStream.on('remote-changed', () => this._onPathChange())
    this._guard = () => {
      if (stream._len > MAX_SEALED) this.fail('FLOW_CONTROL', 'a message is too long')
    }
    // secret-stream makes room for up to 16 MiB as soon as a length says so; strangers do not get that.
    stream.rawStream.on('data', this._guard)
    // A stock protomux client speaks first, so the side that dialled begins and the other one answers.
    if (stream.isInitiator) this._sendPreface()
  }

  send(message) {
    this.stream.write(message)
  }

  /** Python has taken messages of so much cost: the peer may send as much again. */
  grant(cost) {
    this.allowance += cost
    this.stream.write(creditOf(cost))
    if (this._guard !== null && this.allowance > this.owner.firstBytes) {
      this.stream.rawStream.off('data', this._guard)
      this._guard = null
    }
  }

  close(aborts) {
    this.isClosedByUs = true
    if (aborts) this.stream.destroy()
    else this.stream.end()
  }

  fail(code, text) {
    const error = new Error(text)
    error.code = code
    this.stream.destroy(error)
  }

  describe() {
    const { stream, info } = this
    return {
      initiator: stream.isInitiator,
      path: this.path,
      host: stream.rawStream.remoteHost,
      port: stream.rawStream.remotePort,
      topics: info.topics.map((topic) => topic.toString('hex')),
      channel: stream.handshakeHash.toString('hex'),
    }
  }

  _sendPreface() {
    const preface = Buffer.from([PREFACE, VERSION, 0, 0, 0, 0])
    preface.writeUInt32LE(this.owner.firstBytes, 2)
    this.stream.write(preface)
  }

  _onPreface(message) {
    if (message.length !== 6 || message[0] !== PREFACE || message[1] !== VERSION) {
      if (this.stream.isInitiator || !this.owner.adopt(this, message)) this.fail('BAD_PREFACE', 'the peer does not speak our wire')
      return
    }
    clearTimeout(this.deadline)
    if (!this.stream.isInitiator) this._sendPreface()
    this.isOpen = true
    this.path = this.owner.pathOf(this.stream)
    this.owner.opened(this, message.readUInt32LE(2))
  }

  _onMessage(message) {
    const kind = message[0]
    if (kind === DATA || kind === PART) {
      this.allowance -= message.length - 1 + OVERHEAD
      if (this.allowance < 0 || message.length - 1 > MAX_PART) return this.fail('FLOW_CONTROL', 'the peer sent more than it was granted')
      this.owner.outbox.send(kind === DATA ? BOTH_WAYS.DATA : BOTH_WAYS.PART, this.id, message.subarray(1))
    } else if (kind === CREDIT && message.length === 5) {
      this.owner.outbox.send(BOTH_WAYS.CREDIT, this.id, message.subarray(1))
    } else this.fail('BAD_MESSAGE', 'the peer does not speak our wire')
  }

  _onPathChange() {
    const path = this.owner.pathOf(this.stream)
    this.path = path
    const { remoteHost: host, remotePort: port } = this.stream.rawStream
    if (this.isOpen) this.owner.outbox.json(TO_PYTHON.PATH, this.id, { path, host, port })
  }

  _onClose() {
    clearTimeout(this.deadline)
    this.owner.closed(this)
  }
}

function creditOf(cost) {
  const message = Buffer.allocUnsafe(5)
  message[0] = CREDIT
  message.writeUInt32LE(cost, 1)
  return message
}

module.exports = { Connection, DATA, PART, OVERHEAD, MAX_PART }
