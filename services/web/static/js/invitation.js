// Shows the details of an invitation before the user accepts. The code is sent in a request body, because URLs are logged.

import './fragment.js'
import { Refused, toRefused } from './stream.js'
import { TEXTS } from './texts.js'

/** @typedef {{organisation: string, role: string, invited_by: string, until: string}} Offer */

/** The same format as in fragment.js. A truncated code would count as a guess, so do not send it. */
const CODE = /^[\w.~-]{16,200}$/
const PARTS = /** @type {const} */ (['organisation', 'role', 'invited_by', 'until'])

/** Touchscreens send the click a moment after the pointer has left. */
const AFTER_RELEASE_MS = 100

/** Whether a pointer is pressed. The details move the button below them: a click on it that has begun would be lost. */
class Pointer {
  #isPressed = false
  /** @type {(() => void)[]} */
  #waiting = []

  constructor() {
    addEventListener('pointerdown', () => (this.#isPressed = true), true)
    for (const type of ['pointerup', 'pointercancel']) addEventListener(type, () => setTimeout(() => this.#end(), AFTER_RELEASE_MS), true)
  }

  /** Waits until none is. @returns {Promise<void>} */
  released() {
    return this.#isPressed ? new Promise((resolve) => this.#waiting.push(resolve)) : Promise.resolve()
  }

  #end() {
    this.#isPressed = false
    for (const resolve of this.#waiting.splice(0)) resolve()
  }
}

const pointer = new Pointer()

class Invitation {
  /** The last code that was looked up. */
  #code = ''
  #controller = new AbortController()

  /** @param {HTMLFormElement} form */
  constructor(form) {
    this.form = form
    this.field = /** @type {HTMLInputElement} */ (form.elements.namedItem('code'))
    this.offer = /** @type {HTMLElement} */ (form.querySelector('[data-offer]'))
    this.noOffer = /** @type {HTMLElement} */ (form.querySelector('[data-no-offer]'))
  }

  start() {
    this.field.addEventListener('change', () => this.#look())
    this.field.addEventListener('input', (event) => {
      // Do not look up while typing: each character would count as a guess.
      if (event instanceof InputEvent && event.inputType.startsWith('insertFrom')) this.#look()
      else this.#forget()
    })
    // After an error, the page already shows the reason.
    if (!document.getElementById('problem')) this.#look()
  }

  async #look() {
    const code = this.field.value.trim()
    if (code === this.#code) return
    this.#forget()
    if (!CODE.test(code)) return
    this.#code = code
    const { signal } = this.#controller
    try {
      const offer = await this.#read(code, signal)
      await pointer.released()
      if (!signal.aborted) this.#show(offer)
    } catch (error) {
      await pointer.released()
      if (signal.aborted) return
      if (!(error instanceof Refused)) throw error
      this.#refuse(error)
    }
  }

  /** Hides the details: the code has changed. */
  #forget() {
    this.#controller.abort()
    this.#controller = new AbortController()
    this.#code = ''
    this.offer.hidden = this.noOffer.hidden = true
  }

  /** Raises Refused. @param {string} code @param {AbortSignal} signal @returns {Promise<Offer>} */
  async #read(code, signal) {
    const token = /** @type {HTMLInputElement} */ (this.form.elements.namedItem('token')).value
    const headers = { 'Content-Type': 'application/json', 'X-Form-Token': token }
    const request = { method: 'POST', headers, body: JSON.stringify({ code }), signal }
    const answer = await orRefused(fetch('/invitation/offer', { ...request, redirect: 'manual' }))
    if (!answer.ok) throw await toRefused(answer)
    return await orRefused(answer.json())
  }

  /** @param {Offer} offer */
  #show(offer) {
    for (const name of PARTS) {
      const part = this.offer.querySelector(`[data-offer-part="${name}"]`)
      if (part) part.textContent = offer[name]
    }
    this.offer.hidden = false
  }

  /** Shows why the details are unavailable. The user can still join. @param {Refused} error */
  #refuse(error) {
    this.noOffer.textContent = toText(error)
    this.noOffer.hidden = false
  }
}

/** Turns a network error or an invalid response into Refused. @template T @param {Promise<T>} promise */
async function orRefused(promise) {
  try {
    return await promise
  } catch {
    throw new Refused(0)
  }
}

/** @param {Refused} error */
function toText({ status, message, hint }) {
  if (status === 401) return `${TEXTS.signedOut} ${TEXTS.signedOutHint}`
  return status > 0 && status < 500 && message ? [message, hint].map(toSentence).join(' ').trim() : TEXTS.noOffer
}

/** @param {string} text */
const toSentence = (text) => (text ? `${text.charAt(0).toUpperCase()}${text.slice(1)}${/[.!?]$/.test(text) ? '' : '.'}` : '')

const form = document.querySelector('form[data-invitation]')
if (form instanceof HTMLFormElement) new Invitation(form).start()
