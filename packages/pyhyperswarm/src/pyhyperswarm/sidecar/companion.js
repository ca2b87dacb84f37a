'use strict'
// Shared by bootstrap.js and relay.js: options as JSON in the only argument, one line of JSON when ready, exit at the end of stdin. The
// option host is this machine's address for others, or a name, which is resolved again and again.

const { isIPv4 } = require('node:net')
const { setTimeout: sleep } = require('node:timers/promises')
const { Names } = require('./names')

const FOLLOW_MS = 5000
/** How long to close the links to peers. */
const LEAVE_MS = 1500

/** Runs `open(options)` with the host's current `address`, and prints the returned `ready` as one line. Calls `close` at the end of stdin
 * or on SIGTERM, and `close(true)` before opening again for another address: that does not wait for peers, since the DHT nodes may have
 * moved too, and returns when the ports are free. If opening fails the program exits, to be restarted. */
module.exports = async function companion(open) {
  const options = JSON.parse(process.argv[2])
  const names = new Names()
  const present = async () => {
    const found = await names.addressesOf(options.host)
    // Machines often resolve their own name to 127.0.1.1, which is useless for others.
    return isIPv4(options.host) || options.host === 'localhost' ? found : found.filter((each) => !each.startsWith('127.'))
  }
  let [address] = await present()
  if (address === undefined) throw new Error(`${options.host} has no IPv4 address that others can reach`)
  let running = await open({ ...options, address })
  const leave = () => {
    setTimeout(() => process.exit(0), LEAVE_MS).unref()
    running.close().finally(() => process.exit(0))
  }
  for (const signal of ['SIGTERM', 'SIGINT']) process.on(signal, leave)
  process.stdin.on('end', leave).on('error', leave).resume()
  process.stdout.write(`${JSON.stringify(running.ready)}\n`)
  while (!isIPv4(options.host)) {
    await sleep(FOLLOW_MS)
    const found = await present()
    if (found.length === 0 || found.includes(address)) continue
    await running.close(true)
    address = found[0]
    running = await open({ ...options, address })
  }
}
