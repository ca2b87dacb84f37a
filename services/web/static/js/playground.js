// The chat page: sends messages, streams answers, and can stop, regenerate, copy and rate them and show them as code.

import * as conversation from './conversation.js'
import { copy } from './copy.js'
import { Follower } from './follower.js'
import { ImageTray, toThumbnails, watchFiles } from './images.js'
import { Writing } from './markdown_view.js'
import { toContent, toSamples } from './samples.js'
import { Refused, readEvents, toRefused } from './stream.js'
import { TEXTS } from './texts.js'

/** @typedef {import('./conversation.js').Message} Message */

/** Screen readers announce at most this many characters of an answer. */
const MAX_READ_OUT = 2000
const NUMBERS = ['temperature', 'max_tokens', 'top_p', 'seed']
const EFFORT = 'reasoning_effort'

class Playground {
  chat = conversation.EMPTY
  /** @type {AbortController | null} */
  #controller = null
  /** One row per message. @type {HTMLElement[]} */
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
    this.model = /** @type {HTMLSelectElement} */ (this.form.elements.namedItem('model'))
    this.files = /** @type {HTMLInputElement} */ (this.#part('files'))
    const template = /** @type {HTMLTemplateElement} */ (this.#part('image-template'))
    const parts = { list: this.#part('images'), template, problem: this.#part('image-problem') }
    this.tray = new ImageTray(parts, (text) => this.#announce(text))
  }

  /** @param {string} name @param {ParentNode} [within] */
  #part(name, within = this.root) {
    return /** @type {HTMLElement} */ (within.querySelector(`[data-chat="${name}"]`))
  }

  /** @param {string} act */
  #button(act) {
    return /** @type {HTMLButtonElement} */ (this.root.querySelector(`[data-chat-act="${act}"]`))
  }

  start() {
    this.form.addEventListener('submit', (event) => {
      event.preventDefault()
      this.#sendPrompt()
    })
    this.question.addEventListener('keydown', (event) => {
      // With an input method editor, Enter ends the composition.
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
    this.root.addEventListener('input', () => this.#showParameters())
    watchFiles(this.root, this.files, (files) => {
      if (this.#seesImages) this.tray.add(files, conversation.toPictures(this.chat))
      else this.tray.show(`${this.model.value} ${TEXTS.noImages}`)
    })
    this.#showParameters()
    this.#refresh()
  }

  get #seesImages() {
    return this.model.selectedOptions[0]?.dataset.images !== undefined
  }

  /** Shows the parameters of the next request, also while their fields are collapsed. */
  #showParameters() {
    const { system, options } = this.#settings()
    const fields = /** @type {HTMLInputElement[]} */ ([...NUMBERS, EFFORT, 'system'].map((name) => this.form.elements.namedItem(name)))
    const set = fields.filter(({ name }) => name in options || (name === 'system' && system))
    const summary = this.#part('params')
    const texts = set.map(({ name, labels }) => `${labels?.[0]?.textContent?.trim() ?? name} ${options[name] ?? ''}`.trim())
    summary.textContent = texts.join(' · ') || (summary.dataset.defaults ?? '')
    this.#button('attach').hidden = !this.#seesImages
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
      case 'attach':
        this.files.click()
        break
      case 'detach':
        ;(this.tray.remove(button) ?? this.question).focus()
        break
      case 'copy':
        if (row) copy(button, this.#part('text', row), this.chat.messages[this.#rows.indexOf(row)]?.text)
        break
      case 'code':
        this.#showCode()
        break
      case 'up':
      case 'down':
        if (row) this.#rate(this.#rows.indexOf(row), /** @type {'up' | 'down'} */ (button.dataset.chatAct))
    }
  }

  async #sendPrompt() {
    await this.tray.ready()
    const text = this.question.value
    const next = conversation.addPrompt(this.chat, text, this.tray.pictures)
    if (next === this.chat) return
    if (this.tray.pictures.length && !this.#seesImages) return this.tray.show(`${this.model.value} ${TEXTS.noImages}`)
    this.chat = next
    this.question.value = ''
    this.#addRow('user').append(toThumbnails(this.tray.take()), text)
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
    this.tray.take()
    for (const row of this.#rows.splice(0)) row.remove()
    this.#refresh()
    this.question.focus()
  }

  /** Closes the connection, which stops the worker. */
  #stop() {
    this.#controller?.abort()
  }

  /** Reports invalid numbers at their fields. Submitting the form checks this anyway. */
  #areNumbers() {
    return NUMBERS.every((name) => /** @type {HTMLInputElement} */ (this.form.elements.namedItem(name)).reportValidity())
  }

  /** Reads the current settings. */
  #settings() {
    const fields = new FormData(this.form)
    /** @type {Record<string, number | string>} */
    const options = {}
    for (const name of NUMBERS) {
      // Accept a decimal comma.
      const written = String(fields.get(name) ?? '')
        .trim()
        .replace(',', '.')
      if (written !== '' && Number.isFinite(Number(written))) options[name] = Number(written)
    }
    const effort = String(fields.get(EFFORT) ?? '')
    if (effort) options[EFFORT] = effort
    return { model: String(fields.get('model') ?? ''), system: String(fields.get('system') ?? '').trim(), options }
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
      // A stream that ends without usage was interrupted.
      if (conversation.isWriting(this.chat) && !this.chat.messages.at(-1)?.usage)
        this.#take('problem', { code: 'broken', message: TEXTS.brokenStream, hint: TEXTS.unreachableHint })
    } catch (error) {
      if (controller.signal.aborted) state = 'stopped'
      else this.#take('problem', explain(error))
    }
    writing.finish()
    // The chat was cleared or restarted meanwhile.
    if (this.#controller !== controller) return
    this.#controller = null
    this.#writing = null
    this.chat = conversation.end(this.chat, state)
    this.#refresh()
    this.#announceAnswer()
  }

  /** @param {AbortSignal} signal */
  async #read(signal) {
    const { model, system, options } = this.#settings()
    const body = JSON.stringify({ model, messages: conversation.toMessages(this.chat), ...options, ...(system ? { system } : {}) })
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
    if (event === 'thought') this.#think(facts.text)
    if (event === 'chunk') this.#say(facts.text)
    this.#refreshLast()
  }

  /** Adds to the thoughts, which are open while the model thinks. @param {string} text */
  #think(text) {
    const row = this.#rows.at(-1)
    if (!row) return
    const thoughts = /** @type {HTMLDetailsElement} */ (this.#part('thoughts', row))
    if (thoughts.hidden) thoughts.open = true
    thoughts.hidden = false
    this.#part('thought', row).append(text)
    this.follower.keepUp()
  }

  /** Adds to the answer; its first word folds the thoughts. @param {string} text */
  #say(text) {
    const row = this.#rows.at(-1)
    if (row && this.chat.messages.at(-1)?.text === text) /** @type {HTMLDetailsElement} */ (this.#part('thoughts', row)).open = false
    this.#writing?.append(text)
  }

  /** @param {'user' | 'answer'} kind @returns {HTMLElement} The element for its text. */
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
      if (act === 'copy') button.hidden = isBusy || !this.chat.messages[row ? this.#rows.indexOf(row) : -1]?.text
      if (row && (act === 'up' || act === 'down'))
        button.hidden = isBusy || !conversation.canBeRated(this.chat.messages[this.#rows.indexOf(row)])
    }
    this.#part('send').hidden = isWriting
    this.#part('empty').hidden = this.chat.messages.length > 0
    this.#refreshLast()
  }

  /** Updates the notes of the last answer. */
  #refreshLast() {
    const message = this.chat.messages.at(-1)
    const row = this.#rows.at(-1)
    if (!message || !row || message.role !== 'assistant') return
    row.dataset.state = message.state
    this.#showNote(row, 'waiting', message.state === 'writing' ? message.waiting : '')
    const stopped = message.state === 'stopped' ? TEXTS.stopped : ''
    this.#showNote(row, 'usage', [stopped, toLine(message.usage), message.usage?.note].filter(Boolean).join(' '))
    this.#showNote(row, 'problem', message.problem ? `${message.problem.message} ${message.problem.hint}`.trim() : '')
  }

  /** @param {HTMLElement} row @param {string} name @param {string} text */
  #showNote(row, name, text) {
    const part = this.#part(name, row)
    if (part.textContent !== text) part.textContent = text
    part.hidden = text === ''
  }

  /** @param {string} text */
  #announce(text) {
    this.#part('announcement').textContent = text
  }

  /** Announces the complete answer to screen readers. */
  #announceAnswer() {
    const message = this.chat.messages.at(-1)
    const text = this.#rows.at(-1)?.querySelector('[data-chat="text"]')?.textContent ?? ''
    const spoken = message?.problem ? message.problem.message : message?.state === 'stopped' ? TEXTS.stopped : text
    this.#announce(spoken.slice(0, MAX_READ_OUT))
  }

  #showCode() {
    const { model, system, options } = this.#settings()
    const past = conversation.toSent(this.chat).map(({ role, text, images }) => ({ role, content: toContent(text, images) }))
    const open = this.question.value.trim()
    const messages = [
      ...(system ? [{ role: 'system', content: system }] : []),
      ...past,
      ...(open || !past.length ? [{ role: 'user', content: toContent(open || TEXTS.example, this.tray.pictures) }] : []),
    ]
    // Drop a final answer, so that the code sends the question before it.
    if (messages.at(-1)?.role === 'assistant') messages.pop()
    const samples = toSamples(this.root.dataset.address ?? location.origin, { model, messages, ...options })
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
      this.#announce(TEXTS.thanks)
    } catch {
      this.#mark(row, this.chat.messages[index]?.rating ?? '')
      this.#announce(TEXTS.notSaved)
    }
  }

  /** @param {HTMLElement} row @param {string} rating */
  #mark(row, rating) {
    for (const act of ['up', 'down']) row.querySelector(`[data-chat-act="${act}"]`)?.setAttribute('aria-pressed', String(act === rating))
  }
}

/** Opens a collapsed field: browsers cannot report errors on hidden fields. @param {Event} event */
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
  // Log programming errors.
  if (!(error instanceof Refused)) reportError(error)
  if (!(error instanceof Refused) || error.code === 'unreachable')
    return { code: 'unreachable', message: TEXTS.unreachable, hint: TEXTS.unreachableHint }
  if (error.status === 401) return { code: 'signed_out', message: TEXTS.signedOut, hint: TEXTS.signedOutHint }
  return { code: error.code, message: error.message || TEXTS.refused, hint: error.hint || (error.message ? '' : TEXTS.refusedHint) }
}

for (const root of /** @type {NodeListOf<HTMLElement>} */ (document.querySelectorAll('[data-playground]'))) new Playground(root).start()
