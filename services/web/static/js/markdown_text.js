// Parses inline Markdown: code, emphasis, links and breaks. No DOM.

/**
 * @typedef {{type: 'text', text: string} | {type: 'code', text: string} | {type: 'break'}
 *   | {type: 'em' | 'strong' | 'strike', children: Inline[]} | {type: 'link', href: string, children: Inline[]}} Inline
 * @typedef {{mark: string, count: number, end: number, href: string, children: Inline[]}} Frame
 * @typedef {{end: number, href: string}} Target  The end of a link (or its text) and its target.
 */

/** The maximum length of a URL; bounds the search for its end. */
const MAX_ADDRESS = 2048
/** The maximum depth of emphasis; keeps unwinding linear. */
const MAX_OPEN = 24
const MAX_BRACKETS = 100
const PROTOCOLS = new Set(['http:', 'https:', 'mailto:'])
const PUNCTUATION = /[!-/:-@[-`{-~\p{P}\p{S}]/u
const SPACE = /\s/
/** Text without any markup characters. */
const PLAIN = /[^\\`*_~[\]!<\nh]+/y
const BREAK = /<br ?\/?>/iy
const BARE = /https?:\/\/[^\s<>"`]{1,2048}/iy
const ENDS = ".,:;!?'*_~]"
const BRACKETED = /<((?:https?:\/\/|mailto:)[^\s<>]{1,2048})>/iy

/**
 * Returns a safe URL for a link, or null. Allows only absolute http, https and mailto URLs without credentials, which can hide the host.
 * @param {string} written
 * @returns {string | null}
 */
export function safeAddress(written) {
  // Browsers drop tabs and line breaks from URLs and read backslashes as slashes, so reject them.
  if (written.length > MAX_ADDRESS || !/^(https?:\/\/|mailto:)[^\s\\\p{Cc}]+$/iu.test(written)) return null
  try {
    const url = new URL(written)
    return PROTOCOLS.has(url.protocol) && !url.username && !url.password ? url.href : null
  } catch {
    return null
  }
}

/**
 * @param {string} text
 * @returns {Inline[]}
 */
export function parseInline(text) {
  return new Scanner(text).run()
}

class Scanner {
  /** @param {string} text */
  constructor(text) {
    this.text = text
    this.at = 0
    /** @type {Frame[]} */
    this.open = [{ mark: '', count: 0, end: -1, href: '', children: [] }]
    this.codeEnds = pairCode(text)
    /** @type {Map<number, number>} The end of each link, by the position of its `]`. */
    this.ends = new Map()
    this.links = pairLinks(text, this.codeEnds, this.ends)
  }

  get top() {
    return this.open[this.open.length - 1]
  }

  run() {
    while (this.at < this.text.length) {
      if (!this.special()) this.plain()
    }
    while (this.open.length > 1) this.flatten()
    return this.top.children
  }

  /** Parses the markup at this position, if any. */
  special() {
    const char = this.text[this.at]
    switch (char) {
      case '\\':
        return this.escape()
      case '`':
        return this.code()
      case '*':
      case '_':
      case '~':
        return this.emphasis(char)
      case '[':
      case '!':
        return this.openLink(char === '!' ? 1 : 0)
      case ']':
        return this.closeLink()
      case '<':
        return this.match(BREAK, () => this.add({ type: 'break' })) || this.match(BRACKETED, (found) => this.address(found[1]))
      case 'h':
        return this.bare()
      case '\n':
        this.at += 1
        // Models do not wrap prose, so keep their line breaks.
        this.add({ type: 'break' })
        return true
    }
    return false
  }

  plain() {
    PLAIN.lastIndex = this.at
    const length = PLAIN.exec(this.text)?.[0].length ?? 1
    this.emit(this.text.slice(this.at, this.at + length))
    this.at += length
  }

  /** @param {Inline} node */
  add(node) {
    this.top.children.push(node)
  }

  /** @param {string} text */
  emit(text) {
    const last = this.top.children.at(-1)
    if (last?.type === 'text') last.text += text
    else if (text) this.add({ type: 'text', text })
  }

  /** @param {RegExp} pattern @param {(found: RegExpExecArray) => unknown} then */
  match(pattern, then) {
    pattern.lastIndex = this.at
    const found = pattern.exec(this.text)
    if (!found || then(found) === false) return false
    this.at += found[0].length
    return true
  }

  escape() {
    const next = this.text[this.at + 1]
    if (next === '\n') this.at += 1
    else if (next && next < '\x7f' && PUNCTUATION.test(next)) {
      this.emit(next)
      this.at += 2
    } else return false
    return true
  }

  code() {
    const length = runLength(this.text, this.at)
    const end = this.codeEnds.get(this.at)
    if (end === undefined) this.emit(this.text.slice(this.at, this.at + length))
    else {
      const inside = this.text.slice(this.at + length, end).replaceAll('\n', ' ')
      const padded = inside.startsWith(' ') && inside.endsWith(' ') && inside.trim()
      this.add({ type: 'code', text: padded ? inside.slice(1, -1) : inside })
    }
    this.at = (end ?? this.at) + length
    return true
  }

  /** @param {string} mark */
  emphasis(mark) {
    const length = runLength(this.text, this.at)
    const before = this.text[this.at - 1] ?? ' '
    const after = this.text[this.at + length] ?? ' '
    const opens = !SPACE.test(after) && (!PUNCTUATION.test(after) || SPACE.test(before) || PUNCTUATION.test(before))
    const closes = !SPACE.test(before) && (!PUNCTUATION.test(before) || SPACE.test(after) || PUNCTUATION.test(after))
    const inWord = mark === '_' && opens && closes
    this.at += length
    let left = length
    if (closes && (!inWord || PUNCTUATION.test(after))) left = this.close(mark, left)
    if (left && opens && (!inWord || PUNCTUATION.test(before)) && this.open.length < MAX_OPEN && (mark !== '~' || left === 2)) {
      this.open.push({ mark, count: left, end: -1, href: '', children: [] })
    } else this.emit(mark.repeat(left))
    return true
  }

  /** Closes as much as `left` marks can close within the open link, if any. Returns the remaining marks. @param {string} mark @param {number} left */
  close(mark, left) {
    const least = mark === '~' ? 2 : 1
    while (left >= least) {
      let depth = this.open.length - 1
      while (depth > 0 && this.open[depth].mark !== mark && this.open[depth].mark !== '[') depth -= 1
      if (depth === 0 || this.open[depth].mark === '[') break
      while (this.open.length - 1 > depth) this.flatten()
      const frame = this.top
      const used = Math.min(2, left, frame.count)
      if (frame.children.length === 0) break
      const type = mark === '~' ? 'strike' : used === 2 ? 'strong' : 'em'
      frame.children = [{ type, children: frame.children }]
      frame.count -= used
      left -= used
      if (frame.count === 0) {
        this.open.pop()
        this.add(frame.children[0])
      }
    }
    return left
  }

  /** Turns the innermost frame back into text. */
  flatten() {
    const { mark, count, children } = /** @type {Frame} */ (this.open.pop())
    this.emit(mark.repeat(count))
    for (const child of children) {
      if (child.type === 'text') this.emit(child.text)
      else this.add(child)
    }
  }

  /** @param {number} image */
  openLink(image) {
    const target = this.links.get(this.at + image)
    if (!target || (image && this.text[this.at + 1] !== '[') || this.open.length >= MAX_OPEN) return false
    // Images become links: loading one could leak the chat in its URL.
    this.at += 1 + image
    this.open.push({ mark: '[', count: 1, end: target.end, href: target.href, children: [] })
    return true
  }

  closeLink() {
    if (!this.open.some((frame) => frame.end === this.at)) return false
    while (this.top.end !== this.at) this.flatten()
    const { href, children } = /** @type {Frame} */ (this.open.pop())
    this.at = this.ends.get(this.at) ?? 0
    // An image inside a link is text.
    if (this.open.some((frame) => frame.mark === '[')) for (const child of children) this.add(child)
    else this.add({ type: 'link', href, children: children.length ? children : [{ type: 'text', text: href }] })
    return true
  }

  bare() {
    if (this.at > 0 && /[\p{L}\p{N}]/u.test(this.text[this.at - 1])) return false
    BARE.lastIndex = this.at
    const [whole = ''] = BARE.exec(this.text) ?? []
    // Trailing punctuation and closing brackets do not belong to the URL.
    const ends = whole.includes('(') ? ENDS : `${ENDS})`
    let length = whole.length
    while (length && ends.includes(whole[length - 1])) length -= 1
    const found = whole.slice(0, length)
    if (!found || this.address(found) === false) return false
    this.at += found.length
    return true
  }

  /** @param {string} written */
  address(written) {
    const href = safeAddress(written)
    if (href === null || this.open.some((frame) => frame.mark === '[')) return false
    this.add({ type: 'link', href, children: [{ type: 'text', text: written }] })
    return true
  }
}

/** @param {string} text @param {number} at */
function runLength(text, at) {
  let end = at
  while (text[end] === text[at]) end += 1
  return end - at
}

/** Returns the end of each code span by its start; scans from the right, in one pass. @param {string} text */
function pairCode(text) {
  const runs = [...text.matchAll(/\\?`+/g)].map((found) => {
    const escaped = found[0].startsWith('\\') && text[found.index - 1] !== '\\'
    return { at: found.index + (found[0].startsWith('\\') ? 1 : 0), length: found[0].replace('\\', '').length, escaped }
  })
  const next = new Map()
  const ends = new Map()
  for (const run of runs.reverse()) {
    // A backslash escapes the first mark of an opening run; inside code it has no effect.
    if (run.escaped) {
      if (run.length > 1 && next.has(run.length - 1)) ends.set(run.at + 1, next.get(run.length - 1))
    } else if (next.has(run.length)) ends.set(run.at, next.get(run.length))
    next.set(run.length, run.at)
  }
  return ends
}

/**
 * Returns every link by the position of its `[`.
 * @param {string} text
 * @param {Map<number, number>} codeEnds
 * @param {Map<number, number>} ends
 */
export function pairLinks(text, codeEnds, ends) {
  /** @type {Map<number, Target>} */
  const links = new Map()
  /** @type {number[]} */
  let open = []
  for (let at = 0; at < text.length; at += 1) {
    const char = text[at]
    if (char === '\\') at += 1
    else if (char === '`') {
      const end = codeEnds.get(at)
      at = (end ?? at) + runLength(text, at) - 1
    } else if (char === '[') {
      // Bounded, so that many brackets do not take quadratic time.
      if (open.push(at) > MAX_BRACKETS) open.shift()
    } else if (char === ']' && open.length) {
      const start = /** @type {number} */ (open.pop())
      const target = text[at + 1] === '(' ? readTarget(text, at + 2) : null
      if (!target) continue
      links.set(start, { end: at, href: target.href })
      ends.set(at, target.end)
      // Links cannot contain links, so the surrounding ones are text, except images.
      if (text[start - 1] !== '!') open = open.filter((each) => text[each - 1] === '!')
      at = target.end - 1
    }
  }
  return links
}

/**
 * Reads `address "title")`. Looks at each character once: patterns with several runs of spaces would try every way to divide them.
 * @param {string} text @param {number} from @returns {Target | null}
 */
function readTarget(text, from) {
  const until = Math.min(text.length, from + MAX_ADDRESS + 256)
  const start = skipSpaces(text, from, until)
  const isBracketed = text[start] === '<'
  const end = isBracketed ? findEnd(text, start + 1, until, '>', '<\n') : skipAddress(text, start, until)
  if (end === -1) return null
  const written = isBracketed ? text.slice(start + 1, end) : text.slice(start, end)
  let at = isBracketed ? end + 1 : end
  const next = skipSpaces(text, at, until)
  const quote = next > at ? text[next] : ''
  at = next
  if (quote === '"' || quote === "'" || quote === '(') {
    const closing = quote === '(' ? findEnd(text, next + 1, until, ')', '(') : findEnd(text, next + 1, until, quote, '')
    if (closing === -1) return null
    at = skipSpaces(text, closing + 1, until)
  }
  if (at >= until || text[at] !== ')') return null
  const href = safeAddress(written.replace(/\\([!-/:-@[-`{-~])/g, '$1'))
  return href ? { end: at + 1, href } : null
}

/** @param {string} text @param {number} at @param {number} until */
function skipSpaces(text, at, until) {
  while (at < until && SPACE.test(text[at])) at += 1
  return at
}

/** Returns the position of the mark, or -1 if one of the others comes first. @param {string} text @param {number} at @param {number} until @param {string} mark @param {string} others */
function findEnd(text, at, until, mark, others) {
  while (at < until && text[at] !== mark) {
    if (others.includes(text[at])) return -1
    at += 1
  }
  return at < until ? at : -1
}

/** Returns the end of an address, in which parentheses may not nest, or -1. @param {string} text @param {number} at @param {number} until */
function skipAddress(text, at, until) {
  let isOpen = false
  for (; at < until && !SPACE.test(text[at]); at += 1) {
    if (text[at] === '\\') at += 1
    else if (text[at] === '(') {
      if (isOpen) return -1
      isOpen = true
    } else if (text[at] === ')') {
      if (!isOpen) break
      isOpen = false
    }
  }
  return isOpen || at > until ? -1 : at
}
