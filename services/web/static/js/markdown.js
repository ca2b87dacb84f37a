// Parses Markdown blocks into a tree of plain objects. No DOM and no HTML: tags are text.

import { parseInline } from './markdown_text.js'

/**
 * @typedef {import('./markdown_text.js').Inline} Inline
 * @typedef {{type: 'paragraph', children: Inline[]} | {type: 'heading', level: number, children: Inline[]}
 *   | {type: 'code', language: string, text: string} | {type: 'rule'} | {type: 'quote', blocks: Block[]}
 *   | {type: 'list', ordered: boolean, start: number, tight: boolean, items: Block[][]}
 *   | {type: 'table', align: string[], head: Inline[][], rows: Inline[][][]}} Block
 */

/** Quotes and lists nested deeper than this remain text. */
const MAX_DEPTH = 12
/** Much more than one answer; the rest is cut off. */
export const MAX_CHARACTERS = 1_000_000
const MAX_COLUMNS = 40

// No adjacent parts of a pattern match the same text, so that each takes linear time.
const FENCE = /^ {0,3}(`{3,}|~{3,})([^`]*)$/
const HEADING = /^ {0,3}(#{1,6})(?:[ \t]+(.*)|)$/
const RULE = /^ {0,3}([-*_])(?:[ \t]*\1){2,}[ \t]*$/
const QUOTE = /^ {0,3}> ?/
const ITEM = /^( *)([-*+]|\d{1,9}[.)])(?:( +)(?=\S)|[ \t]*$)/
const DIVIDER = /^\|?[ \t]*:?-+:?[ \t]*(?:\|[ \t]*:?-+:?[ \t]*)*\|?$/
/** At least two dashes: a single one may be the start of a list item. */
const UNDERLINE = /^ {0,3}(=+|--+)[ \t]*$/

/**
 * @param {string} text
 * @returns {Block[]}
 */
export function parse(text) {
  return parseLines(toLines(text.slice(0, MAX_CHARACTERS)), 0).blocks
}

/**
 * Parses an unfinished answer, and reports which blocks are final.
 * @param {string} text
 * @returns {{blocks: Block[], settled: number, from: number}}  The first `settled` blocks are final; the others begin at `from`.
 */
export function parseOpen(text) {
  const lines = toLines(text)
  const { blocks, starts } = parseLines(lines, 0)
  // An incomplete last line can still turn the line before it into a table, so a block that starts with one of these lines is not
  // final.
  let settled = blocks.length - 1
  while (settled > 0 && starts[settled] >= lines.length - 2) settled -= 1
  settled = Math.max(0, settled)
  let from = 0
  for (let line = 0; line < (settled ? starts[settled] : 0); line += 1) from = text.indexOf('\n', from) + 1
  return { blocks, settled, from }
}

/** @param {string} text */
function toLines(text) {
  return text.split('\n').map((line) => (line.endsWith('\r') ? line.slice(0, -1) : line).replaceAll('\t', '    '))
}

/** @param {string[]} lines @param {number} depth */
function parseLines(lines, depth) {
  /** @type {Block[]} */
  const blocks = []
  /** @type {number[]} */
  const starts = []
  let at = 0
  while (at < lines.length) {
    if (!lines[at].trim()) {
      at += 1
      continue
    }
    const [block, next] = readBlock(lines, at, depth)
    blocks.push(block)
    starts.push(at)
    at = next
  }
  return { blocks, starts }
}

/** Parses the block at this line. Returns it and the next line. @param {string[]} lines @param {number} at @param {number} depth @returns {[Block, number]} */
function readBlock(lines, at, depth) {
  const line = lines[at]
  const heading = HEADING.exec(line)
  if (heading) {
    const text = (heading[2] ?? '').replace(/(?:^|[ \t])#+[ \t]*$/, '').trim()
    return [{ type: 'heading', level: heading[1].length, children: parseInline(text) }, at + 1]
  }
  if (FENCE.test(line)) return readCode(lines, at)
  if (RULE.test(line)) return [{ type: 'rule' }, at + 1]
  if (depth < MAX_DEPTH && QUOTE.test(line)) return readQuote(lines, at, depth)
  if (depth < MAX_DEPTH && isItem(line)) return readList(lines, at, depth)
  if (isTable(lines, at)) return readTable(lines, at)
  return readParagraph(lines, at, depth)
}

/** @param {string} line */
function isItem(line) {
  const found = ITEM.exec(line)
  return found !== null && found[1].length <= 3
}

/** Whether a paragraph ends before this line. @param {string[]} lines @param {number} at @param {number} depth */
function interrupts(lines, at, depth) {
  const line = lines[at]
  if (!line.trim() || HEADING.test(line) || FENCE.test(line) || RULE.test(line) || isTable(lines, at)) return true
  if (depth >= MAX_DEPTH) return false
  // A number within prose, as in “born in\n1815.”, does not start a list; nor does an empty item.
  return QUOTE.test(line) || (isItem(line) && /^ *(?:[-*+]|1[.)]) +\S/.test(line))
}

/** @param {string[]} lines @param {number} at @param {number} depth @returns {[Block, number]} */
function readParagraph(lines, at, depth) {
  let end = at + 1
  while (end < lines.length && !UNDERLINE.test(lines[end]) && !interrupts(lines, end, depth)) end += 1
  const text = lines.slice(at, end).map((line) => line.trim())
  const children = parseInline(text.join('\n'))
  const underline = end < lines.length && UNDERLINE.exec(lines[end])
  if (underline) return [{ type: 'heading', level: underline[1].startsWith('=') ? 1 : 2, children }, end + 1]
  return [{ type: 'paragraph', children }, end]
}

/** An unclosed fence extends to the end: answers are often cut off there. @param {string[]} lines @param {number} at @returns {[Block, number]} */
function readCode(lines, at) {
  const [, fence, about] = /** @type {RegExpExecArray} */ (FENCE.exec(lines[at]))
  const indent = lines[at].search(/\S/)
  const close = new RegExp(`^ {0,3}${fence[0]}{${fence.length},} *$`)
  let end = at + 1
  while (end < lines.length && !close.test(lines[end])) end += 1
  const text = lines.slice(at + 1, end).map((line) => unindent(line, indent))
  return [{ type: 'code', language: (/^[\w+#.-]{0,30}/.exec(about.trim()) ?? [''])[0], text: text.join('\n') }, end + 1]
}

/** @param {string} line @param {number} most */
function unindent(line, most) {
  const spaces = line.search(/[^ ]|$/)
  return line.slice(Math.min(spaces, most))
}

/** @param {string[]} lines @param {number} at @param {number} depth @returns {[Block, number]} */
function readQuote(lines, at, depth) {
  const inside = []
  let end = at
  for (; end < lines.length; end += 1) {
    const line = lines[end]
    if (QUOTE.test(line)) inside.push(line.replace(QUOTE, ''))
    else if (interrupts(lines, end, depth)) break
    else inside.push(line)
  }
  return [{ type: 'quote', blocks: parseLines(inside, depth + 1).blocks }, end]
}

/** @param {string[]} lines @param {number} at @param {number} depth @returns {[Block, number]} */
function readList(lines, at, depth) {
  const first = /** @type {RegExpExecArray} */ (ITEM.exec(lines[at]))
  const ordered = /\d/.test(first[2])
  const outer = first[1].length
  /** @type {string[][]} */
  const items = []
  let inside = 0
  let tight = true
  let blank = false
  let end = at
  for (; end < lines.length; end += 1) {
    const line = lines[end]
    if (!line.trim()) {
      blank = true
      items.at(-1)?.push('')
      continue
    }
    const indent = line.search(/\S/)
    const found = indent < outer + 2 && !RULE.test(line) ? ITEM.exec(line) : null
    if (found && /\d/.test(found[2]) === ordered) {
      inside = Math.min(found[0].length, found[1].length + found[2].length + 4)
      items.push([line.slice(found[0].length).replace(/^\[([ xX])\] /, (_, mark) => (mark === ' ' ? '☐ ' : '☑ '))])
    } else if (indent >= outer + 2) items.at(-1)?.push(unindent(line, inside))
    else if (blank || interrupts(lines, end, depth)) break
    else items.at(-1)?.push(line)
    if (blank) tight = false
    blank = false
  }
  const blocks = items.map((item) => parseLines(item, depth + 1).blocks)
  return [{ type: 'list', ordered, start: ordered ? Number.parseInt(first[2], 10) : 1, tight, items: blocks }, end]
}

/** @param {string[]} lines @param {number} at */
function isTable(lines, at) {
  const divider = lines[at + 1]
  if (!divider?.includes('-') || !lines[at].includes('|') || !DIVIDER.test(divider.trim())) return false
  const columns = toCells(lines[at]).length
  return columns === toCells(divider).length && columns <= MAX_COLUMNS
}

/** @param {string[]} lines @param {number} at @returns {[Block, number]} */
function readTable(lines, at) {
  const head = toCells(lines[at])
  const align = toCells(lines[at + 1]).map((cell) => (cell.endsWith(':') ? (cell.startsWith(':') ? 'center' : 'right') : 'left'))
  const rows = []
  let end = at + 2
  for (; end < lines.length && lines[end].includes('|'); end += 1) {
    const cells = toCells(lines[end])
    rows.push(head.map((_, column) => parseInline(cells[column] ?? '')))
  }
  return [{ type: 'table', align, head: head.map(parseInline), rows }, end]
}

/** @param {string} line */
function toCells(line) {
  const cells = line
    .trim()
    .replace(/^\|/, '')
    .replace(/(?<!\\)\|$/, '')
    .split(/(?<!\\)\|/)
  return cells.map((cell) => cell.trim().replaceAll('\\|', '|'))
}
