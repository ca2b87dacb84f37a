'use strict'
// protomux-rpc beside our own wire: a stock @hyperswarm/rpc client calls methods that Python serves.

const ProtomuxRPC = require('protomux-rpc')
const { TYPE } = require('./frames')

/** protomux-rpc has neither credits nor cancellation, so this many requests of one client are under way at most. */
const MAX_UNDER_WAY = 32
/** A stock client is silent for five seconds between keep-alives. */
const SILENCE_MS = 20_000
/** Whoever was answered nothing but refusals is a stranger: few at a time, and not for long. */
const MAX_STRANGERS = 20
const STRANGER_MS = 5000
/** What a request of any other client may have; Python refuses smaller ones with words. */
const MAX_REQUEST = 2 * 1024 * 1024

const strangers = new Set() // their streams
const waiting = new Map() // number of a request -> takes its answer
let lastRequest = 0

/** Takes over a connection whose first message was not our preface. */
function adopt(connection, message, publicKey, outbox) {
  const [{ stream }, underWay] = [connection, new Set()]
  if (strangers.size >= MAX_STRANGERS) return stream.destroy()
  strangers.add(stream)
  setTimeout(() => strangers.has(stream) && stream.destroy(), STRANGER_MS).unref()
  stream.removeAllListeners('data').setTimeout(SILENCE_MS)
  stream.once('close', () => {
    // An empty request: nobody waits for that one any more.
    for (const number of underWay) if (waiting.delete(number)) outbox.send(TYPE.REQUEST, number)
    // No request has the number 0: it tells that the connection of a client is closed. The last word, so that nothing begins after it.
    if (!strangers.delete(stream)) outbox.send(TYPE.REQUEST, 0, stream.handshakeHash)
  })
  const ask = async (method, value) => {
    if (underWay.size >= MAX_UNDER_WAY) throw refusal({ code: 'BUSY', message: 'too many requests at once' })
    lastRequest = (lastRequest % 0xffffffff) + 1
    const [number, name] = [lastRequest, Buffer.from(method)]
    const head = [stream.remotePublicKey, stream.handshakeHash, Buffer.of(name.length, name.length >> 8)]
    underWay.add(number)
    outbox.send(TYPE.REQUEST, number, Buffer.concat([...head, name, value]))
    const said = await new Promise((resolve) => waiting.set(number, resolve))
    for (const each of [waiting, underWay]) each.delete(number)
    if (said[0] !== 0) throw refusal(JSON.parse(said.toString('utf8', 1)))
    if (strangers.delete(stream)) connection.mostBytes = MAX_REQUEST
    return said.subarray(1)
  }
  const rpc = new ProtomuxRPC(stream, { id: publicKey, valueEncoding: null })
  // Which methods there are, Python knows: every name has a responder.
  rpc._responders = { get: (method) => ({ options: {}, handler: (value) => ask(method, value) }), clear() {} }
  stream.emit('data', message)
}

/** u8 0 | value, or u8 1 | {"code", "message"} in JSON */
const answer = (number, said) => waiting.get(number)?.(said)
const refusal = ({ code, message }) => Object.assign(new Error(message), { code })

module.exports = { adopt, answer }
