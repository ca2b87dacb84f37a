// Keeps a visible page up to date with an event stream, reconnects, and shows when the connection is lost.

import { apply } from './bindings.js'
import { Refused, readEvents } from './stream.js'

const FIRST_WAIT_MS = 1000
const MAX_WAIT_MS = 30_000
/** Connections can die silently. The server sends an event at least every 15 s, if only `{}`. */
export const SILENCE_MS = 45_000

/** The exponential backoff with jitter before an attempt; 1 is the first. @param {number} attempt @param {number} random */
export function waitMs(attempt, random) {
  return Math.min(MAX_WAIT_MS, FIRST_WAIT_MS * 2 ** (attempt - 1)) * (0.5 + random / 2)
}

/** Follows `data-live-source` of `root`, and sets its `data-live-state`: connecting, live, reconnecting, paused or ended. */
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
    if (document.hidden) this.#setState('paused')
    else this.#connect()
  }

  #pause() {
    clearTimeout(this.#timer)
    this.#controller?.abort()
    this.#controller = null
    if (this.root.dataset.liveState !== 'ended') this.#setState('paused')
  }

  async #connect() {
    if (this.#controller || this.root.dataset.liveState === 'ended') return
    clearTimeout(this.#timer)
    const controller = new AbortController()
    this.#controller = controller
    let silence = setTimeout(() => controller.abort(), SILENCE_MS)
    const restartTimer = () => {
      clearTimeout(silence)
      silence = setTimeout(() => controller.abort(), SILENCE_MS)
    }
    let isOver = false
    try {
      if (this.#attempt === 0) this.#setState('connecting')
      for await (const event of readEvents(this.root.dataset.liveSource ?? '', { signal: controller.signal })) {
        restartTimer()
        this.#take(event.data)
      }
    } catch (error) {
      // Signed out or forbidden: do not retry.
      isOver = error instanceof Refused && [401, 403, 404].includes(error.status)
      if (!(error instanceof Refused) && !controller.signal.aborted) reportError(error)
    } finally {
      clearTimeout(silence)
    }
    if (this.#controller !== controller) return
    this.#controller = null
    if (isOver) this.#setState('ended')
    else this.#retry()
  }

  #retry() {
    this.#setState('reconnecting')
    this.#attempt += 1
    this.#timer = setTimeout(() => this.#connect(), waitMs(this.#attempt, Math.random()))
  }

  /** @param {string} data */
  #take(data) {
    this.#attempt = 0
    this.#setState('live')
    try {
      const values = JSON.parse(data)
      // Elements outside of the root that use the same values.
      for (const part of [this.root, ...document.querySelectorAll('[data-live-beside]')]) apply(part, values)
    } catch (error) {
      // Log a faulty event; the next one may be fine.
      reportError(error)
    }
  }

  /** @param {string} state */
  #setState(state) {
    if (this.root.dataset.liveState === state) return
    this.root.dataset.liveState = state
    for (const note of /** @type {NodeListOf<HTMLElement>} */ (this.root.querySelectorAll('[data-live-note]'))) {
      note.hidden = note.dataset.liveNote !== state
    }
  }
}

for (const root of /** @type {NodeListOf<HTMLElement>} */ (document.querySelectorAll('[data-live-source]'))) new Live(root).start()
