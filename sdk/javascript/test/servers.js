// A server on loopback that answers by a script, and its clients, for the tests in this folder.

import { createServer } from 'node:http'
import { createServer as createRawServer } from 'node:net'
import { AIInferenceClient } from '../src/index.js'

export const KEY = 'aip_live_test'
export const ANSWER = {
  request_id: '0192f0c1-0000-7000-8000-000000000001',
  model: 'echo',
  finish_reason: 'stop',
  usage: { prompt_tokens: 2, completion_tokens: 3, total_tokens: 5 },
  response_time_ms: 12,
}
export const WHOLE = { ...ANSWER, response: 'three small words' }
export const REQUEST = '0192f0c1000070008000000000000001'

/** @typedef {(response: import('node:http').ServerResponse, seen: Seen) => void} Reply */
/** @typedef {{method: string, url: string, headers: Record<string, string>, body: any}} Seen */

/** A server that answers each request with the next reply; the last one repeats. Cancellations are recorded separately. */
export async function scripted(context, ...replies) {
  const seen = []
  const withdrawn = []
  const waiting = []
  const server = createServer(async (request, response) => {
    const parts = []
    for await (const part of request) parts.push(part)
    const text = Buffer.concat(parts).toString()
    const one = { method: request.method, url: request.url, headers: request.headers, body: text ? JSON.parse(text) : null }
    if (request.method === 'DELETE') {
      withdrawn.push(one.headers['idempotency-key'])
      waiting.splice(0).forEach((go) => {
        go()
      })
      json({})(response)
      return
    }
    const reply = replies[Math.min(seen.push(one), replies.length) - 1]
    reply(response, one)
  })
  const client = await clientOf(context, server)
  const onceWithdrawn = () => (withdrawn.length ? Promise.resolve() : new Promise((resolve) => waiting.push(resolve)))
  return { ...client, seen, withdrawn, onceWithdrawn }
}

/** A server that answers every connection with these bytes, or lets the function answer. */
export async function raw(context, answer) {
  const server = createRawServer((socket) => {
    socket.on('error', () => undefined)
    socket.once('data', () => (typeof answer === 'function' ? answer(socket) : socket.end(answer)))
  })
  return clientOf(context, server)
}

/** An address where no server listens. */
export async function nobody() {
  const server = createRawServer()
  await new Promise((resolve) => server.listen(0, '127.0.0.1', resolve))
  const { port } = server.address()
  await new Promise((resolve) => server.close(resolve))
  return `http://127.0.0.1:${port}`
}

async function clientOf(context, server) {
  // Shortens the pauses before retries to almost nothing.
  context.mock.method(Math, 'random', () => -0.995)
  const sockets = new Set()
  server.on('connection', (socket) => sockets.add(socket.on('close', () => sockets.delete(socket))))
  await new Promise((resolve) => server.listen(0, '127.0.0.1', resolve))
  context.after(() => {
    for (const socket of sockets) socket.destroy()
    return new Promise((resolve) => server.close(resolve))
  })
  const baseUrl = `http://127.0.0.1:${server.address().port}`
  return { baseUrl, client: new AIInferenceClient({ apiKey: KEY, baseUrl }), sockets }
}

// --- replies ---------------------------------------------------------------------------------------------------------------------------

/** @returns {Reply} */
export function json(body, status = 200, headers = {}) {
  return (response) => {
    response.writeHead(status, { 'content-type': 'application/json', ...headers })
    response.end(typeof body === 'string' ? body : JSON.stringify(body))
  }
}

/** @returns {Reply} */
export function failure(status, code, headers = {}, more = {}) {
  return json({ error: { message: `it was ${code}`, code, hint: 'do better', param: null, request_id: 'r-1', ...more } }, status, headers)
}

/** @returns {Reply} */
export const hangUp = (response) => response.destroy()

/** Never answers. @returns {Reply} */
export const silence = () => undefined

/** The parts of an event stream, then its end, a broken connection or silence. @returns {Reply} */
export function events(parts, then = 'end') {
  return (response) => {
    response.writeHead(200, { 'content-type': 'text/event-stream; charset=utf-8' })
    const sent = parts.join('')
    if (then === 'end') response.end(sent)
    // Destroy the connection later, or what was written last would be lost.
    else if (then === 'break') response.write(sent, () => setImmediate(() => response.destroy()))
    else response.write(sent)
  }
}

/** The events of an answer's words, numbered as the gateway does. */
export function words(text, first = 1) {
  return text.match(/\s*\S+/g).map((word, index) => event({ text: word }, `${REQUEST}-${first + index}`))
}

export const END = [event(ANSWER), 'data: [DONE]\n\n']

export function event(said, id = null) {
  return `${id === null ? '' : `id: ${id}\n`}data: ${JSON.stringify(said)}\n\n`
}
