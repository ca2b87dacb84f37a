'use strict'
// The protocol between peers (../protocol.md): the preface that proves a connection alive, messages, and their credit.

const { TYPE } = require('./frames')
const { KEEP_ALIVE_MS, SILENCE_MS } = require('./network')

const DATA = 0
const CREDIT = 1
const PART = 2
const PREFACE = Buffer.from([0x48, 1])
/** Without the peer's preface by then the stream is closed, and Hyperswarm dials again. */
const PREFACE_MS = 1500
/** Makes empty messages cost something. */
const OVERHEAD = 32
/** Larger messages are sent in parts. */
const MAX_PART = 64 * 1024
/** Includes the kind, the 17 bytes of secret-stream, and a margin. */
const MAX_SEALED = MAX_PART + 64
/** No honest window is larger, so no peer may grant more than this plus what we have sent. */
const MAX_WINDOW = 1024 * 1024
/** Limits what waits for a peer that grants credit but reads nothing. */
const MAX_UNSENT = 2 * MAX_WINDOW

class Connection {
  /** owner: outbox, firstBytes, pathOf(stream), adopt(connection, message), opened(connection, allowance), closed(connection), and
   * receive(connection, message) for the messages of copying.js, which returns whether the peer may send it. */
  constructor(id, stream, info, owner) {
    Object.assign(this, { id, stream, info, owner, isOpen: false, isStranger: true, failure: null, mostBytes: MAX_SEALED })
    /** What the peer may still send. */
    this.allowance = owner.firstBytes
    /** What the peer may still grant. */
    this.grantable = MAX_WINDOW
    this.deadline = setTimeout(() => this.fail('NO_PREFACE', 'the peer sent no preface'), PREFACE_MS)
    stream.setKeepAlive(KEEP_ALIVE_MS)
    stream.setTimeout(SILENCE_MS)
    this.onMessage = this._onPreface
    stream.on('data', (message) => this.onMessage(message))
    stream.on('error', (error) => Object.assign(this, { failure: error }))
    stream.on('end', () => stream.end())
    stream.once('close', () => {
      clearTimeout(this.deadline)
      owner.closed(this)
    })
    stream.rawStream.on('remote-changed', () => {
      if (this.isOpen) owner.outbox.json(TYPE.EVENT, this.id, { event: 'path-changed', ...this.route() })
    })
    // secret-stream allocates up to 16 MiB as soon as a length announces it. Strangers do not get that.
    this.guard = () => stream._len > this.mostBytes && this.fail('FLOW_CONTROL', 'the peer announced a message that is too long')
    stream.rawStream.on('data', this.guard)
    // The dialing side starts, because a stock protomux client sends first.
    if (stream.isInitiator) this.sendPreface()
  }

  send(message) {
    this.grantable += message.length - 1 + OVERHEAD
    this.stream.write(message)
    if (this.stream._writableState.buffered > MAX_UNSENT) this.fail('FLOW_CONTROL', 'the peer grants credit but does not read')
  }

  /** Python has taken messages of this cost, so the peer may send as much again. */
  grant(cost) {
    this.allowance += cost
    this.stream.write(withNumber(Buffer.of(CREDIT), cost))
    this.stream.rawStream.off('data', this.guard)
    this.isStranger = false
  }

  close(aborts) {
    this.stream[aborts ? 'destroy' : 'end']()
  }

  fail(code, text) {
    this.stream.destroy(Object.assign(new Error(text), { code }))
  }

  route() {
    const { remoteHost: host, remotePort: port } = this.stream.rawStream
    return { path: this.owner.pathOf(this.stream), host, port }
  }

  sendPreface() {
    this.stream.write(withNumber(PREFACE, this.owner.firstBytes))
  }

  _onPreface(message) {
    const { stream, owner } = this
    clearTimeout(this.deadline)
    if (message.length !== 6 || !message.subarray(0, 2).equals(PREFACE)) {
      if (stream.isInitiator || !owner.adopt(this, message)) this.fail('BAD_PREFACE', 'the peer does not speak our protocol')
      return
    }
    if (!stream.isInitiator) this.sendPreface()
    this.isOpen = true
    this.onMessage = this._onMessage
    owner.opened(this, message.readUInt32LE(2))
  }

  _onMessage(message) {
    const kind = message[0]
    const size = message.length - 1
    if (kind === DATA || kind === PART) {
      this.allowance -= size + OVERHEAD
      if (this.allowance < 0 || size > MAX_PART) this.fail('FLOW_CONTROL', 'the peer sent more than it was granted')
      else this.owner.outbox.send(kind === DATA ? TYPE.DATA : TYPE.PART, this.id, message.subarray(1))
    } else if (kind === CREDIT && size === 4) {
      const credit = message.readUInt32LE(1)
      this.grantable -= credit
      if (credit < OVERHEAD || this.grantable < 0) this.fail('FLOW_CONTROL', 'the peer granted too much credit')
      else this.owner.outbox.send(TYPE.CREDIT, this.id, message.subarray(1))
    } else if (kind <= PART || !this.owner.receive(this, message)) this.fail('BAD_MESSAGE', 'the peer does not speak our protocol')
  }
}

function withNumber(prefix, number) {
  const message = Buffer.concat([prefix, Buffer.allocUnsafe(4)])
  message.writeUInt32LE(number, prefix.length)
  return message
}

module.exports = { Connection, DATA, PART, CREDIT, OVERHEAD, MAX_PART, MAX_UNSENT, MAX_WINDOW }
