'use strict'
// The present IPv4 addresses of host names. A resolver that hangs or forgets holds nobody up: the last answer stays in use meanwhile.

const { lookup } = require('node:dns').promises
const { isIPv4 } = require('node:net')

/** The DHT speaks IPv4 alone (dht-rpc/lib/peer.js encodes four bytes). The system's resolver is asked every time, Node keeps nothing. */
const askResolver = (host) => lookup(host, { all: true, family: 4 }).then((found) => found.map(({ address }) => address))
/** Longer than a resolver takes that works. */
const PATIENCE_MS = 2000
/** Where its last answer is known. */
const KNOWN_PATIENCE_MS = 200

class Names {
  constructor({ ask = askResolver, patienceMs = PATIENCE_MS } = {}) {
    this.ask = ask
    this.patienceMs = patienceMs
    this.known = new Map() // host -> addresses, of the last answer
    this.asking = new Map() // host -> promise of the end of a question
  }

  /** All addresses of a host; none if no answer came so far. hyperdht's "address@host" names both. Never rejects. */
  async addressesOf(host) {
    const found = await Promise.all(host.split('@').map((each) => (isIPv4(each) ? [each] : this.#resolve(each))))
    return found.flat()
  }

  async #resolve(host) {
    if (!this.asking.has(host)) {
      const learn = (addresses) => addresses.length > 0 && this.known.set(host, addresses)
      const asked = this.ask(host).then(learn, () => {})
      this.asking.set(
        host,
        asked.finally(() => this.asking.delete(host)),
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
