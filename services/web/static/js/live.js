// Keeps a page up to date while somebody looks at it: one event stream, its own reconnecting, and a sign when it is lost.

import { apply } from './bindings.js'
import { Refused, readEvents } from './stream.js'

const FIRST_WAIT_MS = 1000
const LONGEST_WAIT_MS = 30_000
/** A proxy or a sleeping laptop can lose a connection without a word; the server sends an event, `{}` if need be, at least every 15 s. */
export const SILENCE_MS = 45_000

/** How long to wait before this attempt (1 is the first): doubling, and spread so that all pages do not come back at once. @param {number} attempt @param {number} random */
export function waitMs(attempt, random) {
  return Math.min(LONGEST_WAIT_MS, FIRST_WAIT_MS * 2 ** (attempt - 1)) * (0.5 + random / 2)
}

/** Follows `data-live-source` of `root`; its state stands in `data-live-state`: connecting, live, reconnecting, paused or ended. */
export class Live {
  /** @type {AbortController | null} */
  #controller = null
  #attempt = 0
  /** @type {ReturnType<typeof setTimeout> | undefined} */
  #timer

  /** @param {HTMLElement} root */
  constructor(root) {
    this.root = root
  }

  start() {
    document.addEventListener('visibilitychange', () => (document.hidden ? this.#pause() : this.#connect()))
    if (document.hidden) this.#say('paused')
    else this.#connect()
  }

  #pause() {
    clearTimeout(this.#timer)
    this.#controller?.abort()
    this.#controller = null
    if (this.root.dataset.liveState !== 'ended') this.#say('paused')
  }

  async #connect() {
    if (this.#controller || this.root.dataset.liveState === 'ended') return
    clearTimeout(this.#timer)
    const controller = new AbortController()
    this.#controller = controller
    let silence = setTimeout(() => controller.abort(), SILENCE_MS)
    const heard = () => {
      clearTimeout(silence)
      silence = setTimeout(() => controller.abort(), SILENCE_MS)
    }
    let isOver = false
    try {
      if (this.#attempt === 0) this.#say('connecting')
      for await (const event of readEvents(this.root.dataset.liveSource ?? '', { signal: controller.signal })) {
        heard()
        this.#take(event.data)
      }
    } catch (error) {
      // Signed out, or not allowed any more: asking again does not help.
      isOver = error instanceof Refused && [401, 403, 404].includes(error.status)
      if (!(error instanceof Refused) && !controller.signal.aborted) reportError(error)
    } finally {
      clearTimeout(silence)
    }
    if (this.#controller !== controller) return
    this.#controller = null
    if (isOver) this.#say('ended')
    else this.#retry()
  }

  #retry() {
    this.#say('reconnecting')
    this.#attempt += 1
    this.#timer = setTimeout(() => this.#connect(), waitMs(this.#attempt, Math.random()))
  }

  /** @param {string} data */
  #take(data) {
    this.#attempt = 0
    this.#say('live')
    try {
      const values = JSON.parse(data)
      // What stands outside of it and follows whatever the page follows.
      for (const part of [this.root, ...document.querySelectorAll('[data-live-beside]')]) apply(part, values)
    } catch (error) {
      // A fault in the page or in the server: it is seen in the console, and the next event may be a good one.
      reportError(error)
    }
  }

  /** @param {string} state */
  #say(state) {
    if (this.root.dataset.liveState === state) return
    this.root.dataset.liveState = state
    for (const note of /** @type {NodeListOf<HTMLElement>} */ (this.root.querySelectorAll('[data-live-note]'))) {
      note.hidden = note.dataset.liveNote !== state
    }
  }
}

for (const root of /** @type {NodeListOf<HTMLElement>} */ (document.querySelectorAll('[data-live-source]'))) new Live(root).start()
