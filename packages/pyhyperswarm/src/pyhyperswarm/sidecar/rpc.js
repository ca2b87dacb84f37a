'use strict'
// Supports protomux-rpc beside our own protocol: stock @hyperswarm/rpc clients call methods that Python serves.

const ProtomuxRPC = require('protomux-rpc')
const { TYPE } = require('./frames')

/** The limit per client, because protomux-rpc has neither credit nor cancellation. */
const MAX_UNDER_WAY = 32
/** Stock clients are silent for five seconds between keep-alives. */
const SILENCE_MS = 20_000
/** A client whose requests were all refused is a stranger. Few are allowed, and not for long. */
const MAX_STRANGERS = 20
const STRANGER_MS = 5000
/** For other clients. Python has a lower limit, and refuses with a message. */
const MAX_REQUEST = 2 * 1024 * 1024

const strangers = new Set() // their streams
const waiting = new Map() // request number -> callback for its answer
let lastRequest = 0

/** Takes over a connection that did not begin with our preface. */
function adopt(connection, message, publicKey, outbox) {
  const [{ stream }, underWay] = [connection, new Set()]
  if (strangers.size >= MAX_STRANGERS) return stream.destroy()
  strangers.add(stream)
  setTimeout(() => strangers.has(stream) && stream.destroy(), STRANGER_MS).unref()
  stream.removeAllListeners('data').setTimeout(SILENCE_MS)
  stream.once('close', () => {
    // An empty request cancels the one with that number.
    for (const number of underWay) if (waiting.delete(number)) outbox.send(TYPE.REQUEST, number)
    // Number 0 reports that a client's connection is closed. It comes last, so that nothing starts after it.
    if (!strangers.delete(stream)) outbox.send(TYPE.REQUEST, 0, stream.handshakeHash)
  })
  const ask = async (method, value) => {
    if (underWay.size >= MAX_UNDER_WAY) throw refusal({ code: 'BUSY', message: 'too many requests at once' })
    lastRequest = (lastRequest % 0xffffffff) + 1
    const [number, name] = [lastRequest, Buffer.from(method)]
    const head = [stream.remotePublicKey, stream.handshakeHash, Buffer.of(name.length, name.length >> 8)]
    underWay.add(number)
    outbox.send(TYPE.REQUEST, number, Buffer.concat([...head, name, value]))
    const response = await new Promise((resolve) => waiting.set(number, resolve))
    for (const each of [waiting, underWay]) each.delete(number)
    if (response[0] !== 0) throw refusal(JSON.parse(response.toString('utf8', 1)))
    if (strangers.delete(stream)) connection.mostBytes = MAX_REQUEST
    return response.subarray(1)
  }
  const rpc = new ProtomuxRPC(stream, { id: publicKey, valueEncoding: null })
  // Python knows the methods, so every name has a responder.
  rpc._responders = { get: (method) => ({ options: {}, handler: (value) => ask(method, value) }), clear() {} }
  stream.emit('data', message)
}

/** u8 0 | value, or u8 1 | {"code", "message"} in JSON */
const answer = (number, response) => waiting.get(number)?.(response)
const refusal = ({ code, message }) => Object.assign(new Error(message), { code })

module.exports = { adopt, answer }
