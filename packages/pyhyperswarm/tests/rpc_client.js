// A stock @hyperswarm/rpc client: node rpc_client.js NODE_MODULES BOOTSTRAP_PORT KEY METHOD VALUE; prints what it got as JSON.
const { createRequire } = require('node:module')
const [, , modules, port, key, method, value] = process.argv
const load = createRequire(`${modules}/`)
const RPC = load('@hyperswarm/rpc')
const DHT = load('hyperdht')
const { raw } = load('compact-encoding')

async function main() {
  const dht = new DHT({ bootstrap: [{ host: '127.0.0.1', port: Number(port) }], host: '127.0.0.1', firewalled: false })
  const rpc = new RPC({ dht, valueEncoding: raw })
  const client = rpc.connect(Buffer.from(key, 'hex'))
  let said
  try {
    said = { value: (await client.request(method, Buffer.from(value))).toString() }
  } catch (error) {
    said = { code: error.code, cause: error.cause?.message ?? null, causeCode: error.cause?.code ?? null }
  }
  process.stdout.write(`${JSON.stringify(said)}\n`)
  await rpc.destroy()
  await dht.destroy()
}

main()
