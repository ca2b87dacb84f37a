// The chat page: sends what is typed, shows the answer as it comes, and stops, repeats, rates and explains it as code.

import * as conversation from './conversation.js'
import { Follower } from './follower.js'
import { Writing } from './markdown_view.js'
import { toSamples } from './samples.js'
import { Refused, readEvents, toRefused } from './stream.js'
import { TEXTS } from './texts.js'

/** @typedef {import('./conversation.js').Message} Message */

/** A longer answer is not read out whole: a person goes to it. */
const MOST_READ_OUT = 2000
const NUMBERS = ['temperature', 'max_tokens', 'top_p', 'seed']

class Playground {
  chat = conversation.EMPTY
  /** @type {AbortController | null} */
  #controller = null
  /** One for each message. @type {HTMLElement[]} */
  #rows = []
  /** @type {Writing | null} */
  #writing = null

  /** @param {HTMLElement} root */
  constructor(root) {
    this.root = root
    this.form = /** @type {HTMLFormElement} */ (this.#part('form'))
    this.question = /** @type {HTMLTextAreaElement} */ (this.form.elements.namedItem('message'))
    this.log = this.#part('log')
    this.follower = new Follower(this.log, this.#part('latest'))
  }

  /** @param {string} name @param {ParentNode} [within] */
  #part(name, within = this.root) {
    return /** @type {HTMLElement} */ (within.querySelector(`[data-chat="${name}"]`))
  }

  start() {
    this.form.addEventListener('submit', (event) => {
      event.preventDefault()
      this.#ask()
    })
    this.question.addEventListener('keydown', (event) => {
      // While a word is composed, as in Japanese, Enter ends the word.
      if (event.key !== 'Enter' || event.shiftKey || event.isComposing) return
      event.preventDefault()
      this.form.requestSubmit()
    })
    this.root.addEventListener('invalid', unfold, { capture: true })
    this.root.addEventListener('keydown', (event) => {
      if (event.key === 'Escape' && this.#controller && !this.root.querySelector('dialog[open]')) this.#stop()
    })
    this.root.addEventListener('click', (event) => {
      const button = event.target instanceof Element && event.target.closest('[data-chat-act]')
      if (button instanceof HTMLElement) this.#act(button)
    })
    this.#refresh()
  }

  /** @param {HTMLElement} button */
  #act(button) {
    const row = /** @type {HTMLElement | null} */ (button.closest('[data-chat-message]'))
    switch (button.dataset.chatAct) {
      case 'stop':
        this.#stop()
        this.question.focus()
        break
      case 'clear':
        this.#clear()
        break
      case 'regenerate':
        this.#regenerate()
        break
      case 'code':
        this.#showCode()
        break
      case 'up':
      case 'down':
        if (row) this.#rate(this.#rows.indexOf(row), /** @type {'up' | 'down'} */ (button.dataset.chatAct))
    }
  }

  #ask() {
    const text = this.question.value
    const next = conversation.ask(this.chat, text)
    if (next === this.chat) return
    this.chat = next
    this.question.value = ''
    this.#addRow('user').append(text)
    this.#answer()
  }

  #regenerate() {
    const next = conversation.regenerate(this.chat)
    if (next === this.chat || !this.#areNumbers()) return
    this.chat = next
    this.#rows.pop()?.remove()
    this.#answer()
  }

  #clear() {
    this.#stop()
    this.chat = conversation.EMPTY
    for (const row of this.#rows.splice(0)) row.remove()
    this.#refresh()
    this.question.focus()
  }

  /** The next chunk finds nobody who reads: the connection closes, and with it the work on the GPU ends. */
  #stop() {
    this.#controller?.abort()
  }

  /** Says at the field what is no number. A message that is sent by the form has gone through this already. */
  #areNumbers() {
    return NUMBERS.every((name) => /** @type {HTMLInputElement} */ (this.form.elements.namedItem(name)).reportValidity())
  }

  /** What the form says now. */
  #settings() {
    const fields = new FormData(this.form)
    /** @type {Record<string, number>} */
    const numbers = {}
    for (const name of NUMBERS) {
      // Many people's decimals have a comma.
      const written = String(fields.get(name) ?? '')
        .trim()
        .replace(',', '.')
      if (written !== '' && Number.isFinite(Number(written))) numbers[name] = Number(written)
    }
    return { model: String(fields.get('model') ?? ''), system: String(fields.get('system') ?? '').trim(), numbers }
  }

  async #answer() {
    const controller = new AbortController()
    this.#controller = controller
    this.follower.follow()
    const text = this.#addRow('answer')
    const writing = new Writing(text, { onDrawn: () => this.follower.keepUp() })
    this.#writing = writing
    this.#refresh()
    let state = /** @type {Message['state']} */ ('done')
    try {
      await this.#read(controller.signal)
      // A stream that ends without a word about tokens was cut off.
      if (conversation.isWriting(this.chat) && !this.chat.messages.at(-1)?.usage)
        this.#take('problem', { code: 'broken', message: TEXTS.brokenStream, hint: TEXTS.unreachableHint })
    } catch (error) {
      if (controller.signal.aborted) state = 'stopped'
      else this.#take('problem', explain(error))
    }
    writing.finish()
    // A cleared or newer chat has nothing to do with this answer any more.
    if (this.#controller !== controller) return
    this.#controller = null
    this.#writing = null
    this.chat = conversation.end(this.chat, state)
    this.#refresh()
    this.#announce()
  }

  /** @param {AbortSignal} signal */
  async #read(signal) {
    const { model, system, numbers } = this.#settings()
    const body = JSON.stringify({ model, messages: conversation.toMessages(this.chat), ...numbers, ...(system ? { system } : {}) })
    const events = readEvents('/playground/answer', { method: 'POST', body, headers: this.#headers(), signal })
    for await (const { event, data } of events) {
      if (signal.aborted) return
      this.#take(event, JSON.parse(data))
    }
  }

  #headers() {
    return { 'Content-Type': 'application/json', 'X-Form-Token': this.root.dataset.formToken ?? '' }
  }

  /** @param {string} event @param {any} facts */
  #take(event, facts) {
    this.chat = conversation.receive(this.chat, event, facts)
    if (event === 'chunk') this.#writing?.append(facts.text)
    this.#refreshLast()
  }

  /** @param {'user' | 'answer'} kind @returns {HTMLElement} Where its text goes. */
  #addRow(kind) {
    const template = /** @type {HTMLTemplateElement} */ (this.#part(`${kind}-template`))
    const row = /** @type {HTMLElement} */ (template.content.firstElementChild?.cloneNode(true))
    row.dataset.chatMessage = kind
    this.#rows.push(row)
    this.#part('messages').append(row)
    return row.dataset.chat === 'text' ? row : this.#part('text', row)
  }

  #refresh() {
    const isWriting = this.#controller !== null
    this.root.dataset.chatState = isWriting ? 'writing' : this.chat.messages.length ? 'ready' : 'empty'
    for (const button of /** @type {NodeListOf<HTMLButtonElement>} */ (this.root.querySelectorAll('[data-chat-act]'))) {
      const act = button.dataset.chatAct
      const row = /** @type {HTMLElement | null} */ (button.closest('[data-chat-message]'))
      const isBusy = isWriting && row === this.#rows.at(-1)
      if (act === 'stop') button.hidden = !isWriting
      if (act === 'regenerate') button.hidden = isWriting || row !== this.#rows.at(-1)
      if (row && (act === 'up' || act === 'down'))
        button.hidden = isBusy || !conversation.canBeRated(this.chat.messages[this.#rows.indexOf(row)])
    }
    this.#part('send').hidden = isWriting
    this.#part('empty').hidden = this.chat.messages.length > 0
    this.#refreshLast()
  }

  /** What the last answer's row says besides its text. */
  #refreshLast() {
    const message = this.chat.messages.at(-1)
    const row = this.#rows.at(-1)
    if (!message || !row || message.role !== 'assistant') return
    row.dataset.state = message.state
    this.#say(row, 'waiting', message.state === 'writing' ? message.waiting : '')
    const stopped = message.state === 'stopped' ? TEXTS.stopped : ''
    this.#say(row, 'usage', [stopped, toLine(message.usage), message.usage?.note].filter(Boolean).join(' '))
    this.#say(row, 'problem', message.problem ? `${message.problem.message} ${message.problem.hint}`.trim() : '')
  }

  /** @param {HTMLElement} row @param {string} name @param {string} text */
  #say(row, name, text) {
    const part = this.#part(name, row)
    if (part.textContent !== text) part.textContent = text
    part.hidden = text === ''
  }

  /** For screen readers: the answer when it is whole, not each piece of it. */
  #announce() {
    const message = this.chat.messages.at(-1)
    const text = this.#rows.at(-1)?.querySelector('[data-chat="text"]')?.textContent ?? ''
    const spoken = message?.problem ? message.problem.message : message?.state === 'stopped' ? TEXTS.stopped : text
    this.#part('announcement').textContent = spoken.slice(0, MOST_READ_OUT)
  }

  #showCode() {
    const { model, system, numbers } = this.#settings()
    const asked = conversation.toMessages(this.chat)
    const open = this.question.value.trim()
    const messages = [
      ...(system ? [{ role: 'system', content: system }] : []),
      ...asked,
      ...(open || !asked.length ? [{ role: 'user', content: open || TEXTS.example }] : []),
    ]
    // An answer at the end asks for nothing: the code repeats the question that led to it.
    if (messages.at(-1)?.role === 'assistant') messages.pop()
    const samples = toSamples(this.root.dataset.address ?? location.origin, { model, messages, ...numbers })
    const dialog = /** @type {HTMLDialogElement} */ (this.#part('code'))
    for (const [name, code] of Object.entries(samples)) this.#part(`sample-${name}`, dialog).textContent = code
    dialog.showModal()
  }

  /** @param {number} index @param {'up' | 'down'} rating */
  async #rate(index, rating) {
    const requestId = this.chat.messages[index]?.requestId
    if (!requestId) return
    const row = this.#rows[index]
    this.#mark(row, rating)
    try {
      const body = JSON.stringify({ request_id: requestId, rating })
      const answer = await fetch('/playground/feedback', { method: 'POST', body, headers: this.#headers(), redirect: 'manual' })
      if (!answer.ok) throw await toRefused(answer)
      this.chat = conversation.rate(this.chat, requestId, rating)
      this.#part('announcement').textContent = TEXTS.thanks
    } catch {
      this.#mark(row, this.chat.messages[index]?.rating ?? '')
      this.#part('announcement').textContent = TEXTS.notSaved
    }
  }

  /** @param {HTMLElement} row @param {string} rating */
  #mark(row, rating) {
    for (const act of ['up', 'down']) row.querySelector(`[data-chat-act="${act}"]`)?.setAttribute('aria-pressed', String(act === rating))
  }
}

/** A field that is folded away cannot be pointed at, and then a browser does not say what is wrong with it. @param {Event} event */
function unfold(event) {
  const folded = event.target instanceof Element && event.target.closest('details')
  if (folded) folded.open = true
}

/** @param {import('./conversation.js').Usage | null} usage */
function toLine(usage) {
  if (!usage) return ''
  const parts = [`${usage.prompt_tokens.toLocaleString('en')} + ${usage.completion_tokens.toLocaleString('en')} ${TEXTS.tokens}`]
  if (usage.tokens_per_second) parts.push(`${usage.tokens_per_second.toFixed(1)} ${TEXTS.tokensPerSecond}`)
  if (usage.cost !== undefined && usage.cost !== null) parts.push(`${usage.cost} ${TEXTS.credits}`)
  return parts.join(' · ')
}

/** @param {unknown} error */
function explain(error) {
  // A mistake of ours, or of the server's: it is seen in the console.
  if (!(error instanceof Refused)) reportError(error)
  if (!(error instanceof Refused) || error.code === 'unreachable')
    return { code: 'unreachable', message: TEXTS.unreachable, hint: TEXTS.unreachableHint }
  if (error.status === 401) return { code: 'signed_out', message: TEXTS.signedOut, hint: TEXTS.signedOutHint }
  return { code: error.code, message: error.message || TEXTS.refused, hint: error.hint || (error.message ? '' : TEXTS.refusedHint) }
}

for (const root of /** @type {NodeListOf<HTMLElement>} */ (document.querySelectorAll('[data-playground]'))) new Playground(root).start()
