'use strict'
// What bootstrap.js and relay.js share: options as JSON in the only argument, one line of JSON when ready, an end with stdin.

/** Runs `open(options)`, prints what it returns as one line, and calls its `close` at the end of stdin or by SIGTERM. */
module.exports = async function companion(open) {
  const { ready, close } = await open(JSON.parse(process.argv[2]))
  const leave = () => {
    setTimeout(() => process.exit(0), 1500).unref()
    close().finally(() => process.exit(0))
  }
  for (const signal of ['SIGTERM', 'SIGINT']) process.on(signal, leave)
  process.stdin.on('end', leave).on('error', leave).resume()
  process.stdout.write(`${JSON.stringify(ready)}\n`)
}
