'use strict'
// What bootstrap.js and relay.js share: options as JSON in the only argument, one line of JSON when ready, an end with stdin. In the options,
// host is what others reach this machine by: an address, or a name, which is followed when it moves.

const { isIPv4 } = require('node:net')
const { setTimeout: sleep } = require('node:timers/promises')
const { Names } = require('./names')

/** How often a name is looked up again. */
const FOLLOW_MS = 5000
/** How long the others may take to hear that we leave. */
const LEAVE_MS = 1500

/** Runs `open(options)`, with the host's present `address`, and prints what it returns as `ready` as one line. Calls its `close` at the
 * end of stdin or by SIGTERM, and `close(true)` before it opens anew for another address: that waits for no peer, since the DHT nodes may
 * have moved too, and returns when the ports are free. When opening fails the program ends, to be started again. */
module.exports = async function companion(open) {
  const options = JSON.parse(process.argv[2])
  const names = new Names()
  const present = async () => {
    const found = await names.addressesOf(options.host)
    // A machine often knows its own name by 127.0.1.1, by which nobody else finds it.
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
