'use strict'
// protomux-rpc beside our own wire: a stock @hyperswarm/rpc client calls methods that Python serves.

const ProtomuxRPC = require('protomux-rpc')
const { raw } = require('compact-encoding')
const { TYPE } = require('./frames')

/** protomux-rpc has neither credits nor cancellation, so this many requests of one client are under way at most. */
const MAX_UNDER_WAY = 32
/** A stock client is silent for five seconds between keep-alives. */
const SILENCE_MS = 20_000

const waiting = new Map() // number of a request -> how it ends
let lastRequest = 0

/** Takes over a connection whose first message was not our preface. */
function adopt({ id, stream }, message, publicKey, outbox) {
  let underWay = 0
  stream.removeAllListeners('data')
  stream.setTimeout(SILENCE_MS)
  const rpc = new ProtomuxRPC(stream, { id: publicKey, valueEncoding: raw })
  const ask = (method, value) => {
    if (underWay >= MAX_UNDER_WAY) throw refusal({ code: 'BUSY', message: 'too many requests at once' })
    underWay++
    lastRequest = (lastRequest + 1) >>> 0
    const name = Buffer.from(method)
    const head = Buffer.allocUnsafe(6)
    head.writeUInt32LE(id, 0)
    head.writeUInt16LE(name.length, 4)
    outbox.send(TYPE.REQUEST, lastRequest, Buffer.concat([stream.remotePublicKey, head, name, value]))
    const number = lastRequest
    return new Promise((resolve, reject) => waiting.set(number, { resolve, reject })).finally(() => underWay--)
  }
  // Which methods there are, Python knows: every name has a responder.
  rpc._responders = { get: (method) => ({ options: {}, handler: (value) => ask(method, value) }), clear() {} }
  stream.emit('data', message)
}

/** u8 0 | value, or u8 1 | {"code", "message"} in JSON */
function answer(number, payload) {
  const request = waiting.get(number)
  waiting.delete(number)
  if (payload[0] === 0) request?.resolve(payload.subarray(1))
  else request?.reject(refusal(JSON.parse(payload.toString('utf8', 1))))
}

function refusal({ code, message }) {
  return Object.assign(new Error(message), { code })
}

module.exports = { adopt, answer }
