'use strict'
// Acts as strangers who know a topic: connects with many keys to the nodes that announce themselves there, sends bytes, and counts.
// node strangers.js MODULES {"bootstrap": [{"host", "port"}], "topic": hex, "count": n, "parallel": n, "says": [hex, ...]}
// Prints a line of JSON when it has found a node, and one at the end.

const { createRequire } = require('node:module')
const DHT = createRequire(`${process.argv[2]}/x.js`)('hyperdht')

const { bootstrap, topic, count, parallel, says } = JSON.parse(process.argv[3])
const PREFACE = Buffer.from([0x48, 1, 0, 0, 0x10, 0])
const GIVE_UP_MS = 5000

const told = { opened: 0, answered: 0, bytes: 0, longest: 0 }

function visit(dht, key, number) {
  return new Promise((resolve) => {
    const stream = dht.connect(key, { keyPair: DHT.keyPair() })
    const timer = setTimeout(() => stream.destroy(), GIVE_UP_MS)
    let messages = 0
    stream.on('open', () => {
      told.opened++
      stream.write(PREFACE)
      const words = says[number % says.length]
      if (words) stream.write(Buffer.concat([Buffer.of(0), Buffer.from(words, 'hex')]))
    })
    stream.on('data', (message) => {
      messages++
      told.bytes += message.length
    })
    stream.on('error', () => {})
    stream.on('close', () => {
      clearTimeout(timer)
      if (messages > 1) told.answered++
      told.longest = Math.max(told.longest, messages)
      resolve()
    })
  })
}

async function main() {
  const dht = new DHT({ bootstrap, host: '127.0.0.1', port: [0, 0], firewalled: false })
  const found = new Map()
  while (found.size === 0) {
    for await (const { peers } of dht.lookup(Buffer.from(topic, 'hex'))) for (const { publicKey } of peers) found.set(publicKey.toString('hex'), publicKey)
  }
  console.log(JSON.stringify({ found: [...found.keys()] }))
  const keys = [...found.values()]
  let next = 0
  const lane = async () => {
    while (next < count) {
      const number = next++
      await visit(dht, keys[number % keys.length], number)
    }
  }
  await Promise.all(Array.from({ length: parallel }, lane))
  console.log(JSON.stringify(told))
  await dht.destroy({ force: true })
}

main()
