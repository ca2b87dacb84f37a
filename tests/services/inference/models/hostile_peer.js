// A peer that says it has every block, and then breaks the protocol: node hostile_peer.js NODE_MODULES BOOTSTRAP_PORT FAULT BLOCKS
// Prints its public key when it can be dialed. Ends with its standard input.
const { createRequire } = require('node:module')
const [, , modules, port, fault, blocks] = process.argv
const DHT = createRequire(`${modules}/`)('hyperdht')
const [WATCH, HAVE, NEWS, ASK, SLICE, NO] = [3, 4, 5, 6, 7, 8]

const number = (value) => Buffer.of(value, value >> 8, value >> 16, value >>> 24)
const message = (kind, digest, ...rest) => Buffer.concat([Buffer.of(kind), digest, ...rest])

/** What it sends instead of the block that was asked. */
const FAULTS = {
  silent: () => [],
  'another block': (digest, index) => [message(SLICE, digest, number(index + 1), Buffer.alloc(65536))],
  'another file': (digest, index) => [message(SLICE, Buffer.alloc(32, 1), number(index), Buffer.alloc(65536))],
  'a long slice': (digest, index) => [message(SLICE, digest, number(index), Buffer.alloc(65537))],
  'empty slices': (digest, index) => [message(SLICE, digest, number(index))],
  'a block beyond the end': (digest) => [message(NEWS, digest, number(0), number(0xfffffff0))],
  'another bitmap': (digest) => [message(HAVE, digest, Buffer.alloc(1))],
  'a flood of news': (digest) => Array.from({ length: 5000 }, () => message(NEWS, digest, number(0))),
  'a flood of refusals': (digest, index) => Array.from({ length: 5000 }, () => message(NO, digest, number(index))),
  'half a message': (digest) => [message(ASK, digest)],
}

async function main() {
  const keyPair = DHT.keyPair()
  const dht = new DHT({ keyPair, bootstrap: [{ host: '127.0.0.1', port: Number(port) }], host: '127.0.0.1', port: [0, 0], firewalled: false })
  const server = dht.createServer((stream) => {
    let isOpen = false
    stream.on('error', () => {}).setKeepAlive(1000)
    stream.on('data', (data) => {
      if (!isOpen) {
        isOpen = true
        stream.write(Buffer.of(0x48, 1, 0, 0, 16, 0))
      } else if (data[0] === WATCH && data.length > 33) {
        const bits = Buffer.alloc((Number(blocks) + 7) >> 3, 255)
        stream.write(message(HAVE, data.subarray(1, 33), bits))
      } else if (data[0] === ASK) for (const each of FAULTS[fault](Buffer.from(data.subarray(1, 33)), data.readUInt32LE(33))) stream.write(each)
    })
  })
  await server.listen(keyPair)
  process.stdout.write(`${keyPair.publicKey.toString('hex')}\n`)
  process.stdin.on('end', () => process.exit()).resume()
}

main()
