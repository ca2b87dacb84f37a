'use strict'
// The peer wire (../protocol.md): the preface that proves a connection alive, messages, and the credit that bounds them.

const { TYPE } = require('./frames')
const { KEEP_ALIVE_MS, SILENCE_MS } = require('./network')

const DATA = 0
const CREDIT = 1
const PART = 2
const PREFACE = Buffer.from([0x48, 1])
/** "Open" is not "alive": without the peer's preface by then the stream goes, and Hyperswarm dials again. */
const PREFACE_MS = 1500
/** What a message costs besides its bytes, so that empty ones are not free. */
const OVERHEAD = 32
/** Larger messages travel in parts. */
const MAX_PART = 64 * 1024
/** With its kind, the 17 bytes of secret-stream, and some room. */
const MAX_SEALED = MAX_PART + 64
/** No honest window is larger, so nobody grants more than this and what we have sent. */
const MAX_WINDOW = 1024 * 1024
/** A peer may grant more and more, and take nothing. */
const MAX_UNSENT = 2 * MAX_WINDOW

class Connection {
  /** owner: outbox, firstBytes, pathOf(stream), adopt(connection, message), opened(connection, allowance), closed(connection) */
  constructor(id, stream, info, owner) {
    Object.assign(this, { id, stream, info, owner, isOpen: false, failure: null, mostBytes: MAX_SEALED })
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
    // secret-stream makes room for up to 16 MiB as soon as a length says so; strangers do not get that.
    this.guard = () => stream._len > this.mostBytes && this.fail('FLOW_CONTROL', 'the peer announced a message that is too long')
    stream.rawStream.on('data', this.guard)
    // A stock protomux client speaks first, so the side that dialled begins and the other one answers.
    if (stream.isInitiator) this.sendPreface()
  }

  send(message) {
    this.grantable += message.length - 1 + OVERHEAD
    this.stream.write(message)
    if (this.stream._writableState.buffered > MAX_UNSENT) this.fail('FLOW_CONTROL', 'the peer grants more than it takes')
  }

  /** Python has taken messages of so much cost: the peer may send as much again. */
  grant(cost) {
    this.allowance += cost
    this.stream.write(withNumber(Buffer.of(CREDIT), cost))
    this.stream.rawStream.off('data', this.guard) // no stranger any more
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
      if (stream.isInitiator || !owner.adopt(this, message)) this.fail('BAD_PREFACE', 'the peer does not speak our wire')
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
      if (credit < OVERHEAD || this.grantable < 0) this.fail('FLOW_CONTROL', 'the peer granted what nobody needs')
      else this.owner.outbox.send(TYPE.CREDIT, this.id, message.subarray(1))
    } else this.fail('BAD_MESSAGE', 'the peer does not speak our wire')
  }
}

function withNumber(prefix, number) {
  const message = Buffer.concat([prefix, Buffer.allocUnsafe(4)])
  message.writeUInt32LE(number, prefix.length)
  return message
}

module.exports = { Connection, DATA, PART, CREDIT, OVERHEAD, MAX_PART, MAX_WINDOW }
