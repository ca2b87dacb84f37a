// A stock @hyperswarm/rpc peer: node javascript_peer.js NODE_MODULES, with {bootstrap, seed, node, requests: [[method, value], …]} on stdin
// Sends the requests in order on one connection, and prints a list of {value} or {code, message} as JSON. SIGTERM stops it cleanly.
// The requests of a nested list are sent at once. [method, value, 'read'] reads the method's stream; 'hold' reads only its first items.
const { readFileSync } = require('node:fs')
const { createRequire } = require('node:module')
const load = createRequire(`${process.argv[2]}/`)
const RPC = load('@hyperswarm/rpc')
const DHT = load('hyperdht')
const { raw } = load('compact-encoding')

const { bootstrap, seed, node, requests } = JSON.parse(readFileSync(0))
const PATIENCE_MS = 10_000

/** Retries, because the DHT does not know a newly started node yet. */
async function connect(rpc) {
  const until = Date.now() + PATIENCE_MS
  for (;;) {
    const client = rpc.connect(Buffer.from(node, 'hex'))
    const isOpen = await new Promise((resolve) => client.once('open', () => resolve(true)).once('close', () => resolve(false)))
    if (isOpen || Date.now() > until) return client
    await new Promise((resolve) => setTimeout(resolve, 50))
  }
}

async function read(client, method, value, how) {
  const { handle } = await client.request(`${method}.stream`, value)
  for (const items = []; ; ) {
    const next = await client.request('stream.next', { handle })
    items.push(...next.items)
    if (next.end) return { items, end: next.end }
    if (how === 'hold') return await new Promise(() => {})
  }
}

async function answer(client, request) {
  if (Array.isArray(request[0])) return await Promise.all(request.map((each) => answer(client, each)))
  const [method, value, how] = request
  const asking = how ? read(client, method, value, how) : client.request(method, value)
  return await asking.then((said) => ({ value: said })).catch(({ code, message, cause }) => ({ code: cause?.code ?? code, message: cause?.message ?? message }))
}

async function main() {
  const rpc = new RPC({ keyPair: DHT.keyPair(Buffer.from(seed, 'hex')), bootstrap, valueEncoding: raw.json })
  process.once('SIGTERM', () => rpc.destroy())
  const client = await connect(rpc)
  const answers = []
  for (const request of requests) answers.push(await answer(client, request))
  process.stdout.write(JSON.stringify(answers))
  await rpc.destroy()
}

main()
