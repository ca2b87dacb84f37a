'use strict'
// Resolves host names to IPv4 addresses. While the resolver hangs or fails, the last answer is used.

const { lookup } = require('node:dns').promises
const { isIPv4 } = require('node:net')

/** The DHT supports only IPv4 (dht-rpc/lib/peer.js encodes four bytes). Node.js does not cache lookups. */
const askResolver = (host) => lookup(host, { all: true, family: 4 }).then((found) => found.map(({ address }) => address))
/** A working resolver is faster. */
const PATIENCE_MS = 2000
/** The same, if an earlier answer is known. */
const KNOWN_PATIENCE_MS = 200

class Names {
  constructor({ ask = askResolver, patienceMs = PATIENCE_MS } = {}) {
    this.ask = ask
    this.patienceMs = patienceMs
    this.known = new Map() // host -> addresses of the last answer
    this.asking = new Map() // host -> promise of a running lookup
  }

  /** Returns all addresses of a host; none before the first answer. hyperdht's "address@host" names both. Never rejects. */
  async addressesOf(host) {
    const found = await Promise.all(host.split('@').map((each) => (isIPv4(each) ? [each] : this.#resolve(each))))
    return found.flat()
  }

  async #resolve(host) {
    if (!this.asking.has(host)) {
      const learn = (addresses) => addresses.length > 0 && this.known.set(host, addresses)
      const pending = this.ask(host).then(learn, () => {})
      this.asking.set(
        host,
        pending.finally(() => this.asking.delete(host)),
      )
    }
    let timer
    const patience = new Promise((resolve) => {
      timer = setTimeout(resolve, this.known.has(host) ? Math.min(this.patienceMs, KNOWN_PATIENCE_MS) : this.patienceMs)
    })
    await Promise.race([this.asking.get(host), patience])
    clearTimeout(timer)
    return this.known.get(host) ?? []
  }
}

module.exports = { Names }
