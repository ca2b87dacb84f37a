// Renders Markdown as elements, incrementally for a running answer. Never uses HTML strings.

import { MAX_CHARACTERS, parse, parseOpen } from './markdown.js'
import { TEXTS } from './texts.js'

/** @typedef {import('./markdown.js').Block} Block @typedef {import('./markdown.js').Inline} Inline */

/** @type {Record<'em' | 'strong' | 'strike', 'em' | 'strong' | 'del'>} */
const TAGS = { em: 'em', strong: 'strong', strike: 'del' }
/** Headings of an answer rank below those of the page. */
const HEADING_OFFSET = 2
/** The share of time spent on redrawing an unfinished block, so that a long one stays responsive. */
const DRAWING_SHARE = 1 / 8

/**
 * Appends the tree to `parent`.
 * @param {Block[]} blocks
 * @param {Element} parent
 */
export function render(blocks, parent) {
  for (const block of blocks) parent.append(toElement(block))
}

/**
 * Renders a growing answer. Final blocks are drawn once; the last block is redrawn at most once per frame.
 */
export class Writing {
  #tail = ''
  #length = 0
  /** @type {Element[]} */
  #unsettled = []
  #planned = false
  #notBefore = 0

  /**
   * @param {Element} parent
   * @param {{schedule?: (draw: () => void) => void, now?: () => number, onDrawn?: () => void}} [parts]
   */
  constructor(parent, { schedule = (draw) => requestAnimationFrame(draw), now = () => performance.now(), onDrawn = () => {} } = {}) {
    this.parent = parent
    this.schedule = schedule
    this.now = now
    this.onDrawn = onDrawn
  }

  /** @param {string} text */
  append(text) {
    this.#tail += text.slice(0, Math.max(0, MAX_CHARACTERS - this.#length))
    this.#length += text.length
    this.#plan()
  }

  /** Draws the rest. Call this at the end. */
  finish() {
    this.#draw()
    this.#planned = true
  }

  #plan() {
    if (this.#planned) return
    this.#planned = true
    this.schedule(() => this.#turn())
  }

  #turn() {
    if (this.now() < this.#notBefore) {
      this.schedule(() => this.#turn())
      return
    }
    this.#planned = false
    const began = this.now()
    this.#draw()
    const ended = this.now()
    this.#notBefore = ended + (ended - began) / DRAWING_SHARE
  }

  #draw() {
    const { blocks, settled, from } = parseOpen(this.#tail)
    const drawn = blocks.map(toElement)
    for (const old of this.#unsettled) old.remove()
    this.parent.append(...drawn)
    this.#unsettled = drawn.slice(settled)
    this.#tail = this.#tail.slice(from)
    this.onDrawn()
  }
}

/**
 * @template {keyof HTMLElementTagNameMap} T
 * @param {T} tag
 * @param {...(Node | string)} inside
 */
function make(tag, ...inside) {
  const element = document.createElement(tag)
  element.append(...inside)
  return element
}

/** @param {Block} block @returns {HTMLElement} */
function toElement(block) {
  switch (block.type) {
    case 'paragraph':
      return make('p', ...toNodes(block.children))
    case 'heading':
      return make(/** @type {'h3'} */ (`h${Math.min(6, block.level + HEADING_OFFSET)}`), ...toNodes(block.children))
    case 'code':
      return toFigure(block.language, block.text)
    case 'rule':
      return make('hr')
    case 'quote':
      return make('blockquote', ...block.blocks.map(toElement))
    case 'list':
      return toList(block)
    case 'table':
      return toTable(block)
  }
}

/** Renders a code block with a copy button, which copy.js handles. @param {string} language @param {string} text */
function toFigure(language, text) {
  const copy = make('button', TEXTS.copy)
  copy.type = 'button'
  copy.className = 'quiet'
  copy.dataset.copy = ''
  const code = make('pre', make('code', text))
  code.tabIndex = 0
  const figure = make('figure', make('figcaption', make('span', language || TEXTS.code), copy), code)
  figure.className = 'code'
  return figure
}

/** @param {Extract<Block, {type: 'list'}>} block */
function toList(block) {
  const list = make(block.ordered ? 'ol' : 'ul')
  if (block.ordered && block.start !== 1) list.setAttribute('start', String(block.start))
  for (const blocks of block.items) {
    const item = make('li')
    for (const each of blocks) {
      if (block.tight && each.type === 'paragraph') item.append(...toNodes(each.children))
      else item.append(toElement(each))
    }
    list.append(item)
  }
  return list
}

/** @param {Extract<Block, {type: 'table'}>} block */
function toTable(block) {
  /** @param {'th' | 'td'} tag @param {Inline[][]} cells */
  const row = (tag, cells) =>
    make(
      'tr',
      ...cells.map((cell, column) => {
        const element = make(tag, ...toNodes(cell))
        element.style.textAlign = block.align[column]
        return element
      }),
    )
  const table = make('table', make('thead', row('th', block.head)), make('tbody', ...block.rows.map((cells) => row('td', cells))))
  // On a phone, a wide table scrolls in its frame, also by keyboard.
  const frame = make('div', table)
  frame.className = 'scrolls'
  frame.tabIndex = 0
  frame.role = 'region'
  frame.ariaLabel = TEXTS.table
  return frame
}

/** @param {Inline[]} inlines @returns {(Node | string)[]} */
function toNodes(inlines) {
  return inlines.map((inline) => {
    switch (inline.type) {
      case 'text':
        return inline.text
      case 'code':
        return make('code', inline.text)
      case 'break':
        return make('br')
      case 'link': {
        const link = make('a', ...toNodes(inline.children))
        link.href = inline.href
        link.rel = 'noopener noreferrer nofollow'
        link.target = '_blank'
        // Show the real target, whatever the text says.
        link.title = inline.href
        return link
      }
      default:
        return make(TAGS[inline.type], ...toNodes(inline.children))
    }
  })
}

/** @param {string} text @param {Element} parent */
export function show(text, parent) {
  parent.replaceChildren()
  render(parse(text), parent)
}
