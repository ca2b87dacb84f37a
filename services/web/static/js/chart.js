// Draws a `<table data-chart="bars|lines|series">` with uPlot and redraws on changes. Without JavaScript the table remains.

import { readSeries } from './series_table.js'
import { TEXTS } from './texts.js'

const HEIGHT = 220
const COLORS = ['var(--series-1)', 'var(--series-2)', 'var(--series-3)', 'var(--series-4)']
/** The dash patterns after all colors are used; `data-dash` styles the legend marks alike. */
const DASHES = [[], [7, 4], [2, 3]]
const COMPACT = new Intl.NumberFormat('en', { notation: 'compact', maximumFractionDigits: 1 })
/** Label steps for rows without a time: whole rows only. */
const ROW_STEPS = [1, 2, 5, 7, 10, 14, 20, 30, 50, 100, 200, 500, 1000]
/** Scale steps for counts: whole numbers only. */
const WHOLE_STEPS = Array.from({ length: 15 }, (_, power) => [1, 2, 5].map((each) => each * 10 ** power)).flat()
/** The class from the library's own script, which runs before this one. */
const uPlot = /** @type {any} */ (globalThis).uPlot

/**
 * @typedef {{label: string, isDrawn: boolean, text: (place: number) => string}} Series  `text` formats the value at a place.
 * @typedef {{isTime: boolean, isEmpty: boolean, last: number, name: (place: number) => string, series: Series[],
 *   values: (number | null)[][], write: (value: number) => string, most: number | null,
 *   tick: ((seconds: number) => string) | null}} Facts  `write` formats the scale, whose fixed end is `most`; `tick`
 *   formats the times below the chart.
 */

/** Reads a table. A value is the cell's `data-value` or text; a row's time is its header's `data-value`, in Unix seconds. @param {HTMLTableElement} table @returns {Facts} */
export function readTable(table) {
  const rows = [...table.tBodies].flatMap((body) => [...body.rows])
  const heads = [...(table.tHead?.rows[0].cells ?? [])]
  // Draw only columns of one unit, and only one column as bars. The legend still shows the others.
  const unit = heads[1]?.dataset.unit ?? ''
  /** @type {Series[]} */
  const series = []
  /** @type {(number | null)[][]} */
  const columns = []
  for (const [column, head] of heads.entries()) {
    if (column === 0) continue
    const isDrawn = (head.dataset.unit ?? '') === unit && (table.dataset.chart !== 'bars' || series.length === 0)
    const text = (/** @type {number} */ row) => rows[row]?.cells[column].textContent?.trim() ?? ''
    series.push({ label: head.textContent?.trim() ?? '', isDrawn, text })
    columns.push(rows.map((row) => toNumber(row.cells[column])))
  }
  const times = rows.map((row) => toNumber(row.cells[0]))
  const isTime = rows.length > 0 && rows.every((row) => row.cells[0].dataset.value) && !times.includes(null)
  const places = isTime ? times : rows.map((_, index) => index)
  return {
    isTime,
    isEmpty: rows.length === 0,
    last: rows.length - 1,
    name: (row) => rows[row]?.cells[0].textContent?.trim() ?? '',
    series,
    values: [places, ...columns],
    write: (value) => COMPACT.format(value) + unit,
    most: null,
    tick: null,
  }
}

/** @param {HTMLTableCellElement | undefined} cell */
function toNumber(cell) {
  const written = (cell?.dataset.value ?? cell?.textContent ?? '').replaceAll(/[^0-9.eE+-]/g, '')
  const value = written === '' ? Number.NaN : Number(written)
  return Number.isFinite(value) ? value : null
}

class Chart {
  /** @type {any} */
  #plot = null
  #isPlanned = false

  /** @param {HTMLTableElement} table */
  constructor(table) {
    this.table = table
    this.facts = this.#facts()
    this.colors = COLORS
    this.figure = document.createElement('figure')
    this.figure.className = 'plot'
    this.field = document.createElement('div')
    this.field.tabIndex = 0
    this.field.role = 'group'
    this.field.ariaRoleDescription = 'chart'
    this.field.ariaLabel = `${table.caption?.textContent?.trim() ?? ''}. ${TEXTS.chartHint}`
    this.reading = document.createElement('output')
    this.figure.append(this.reading, this.field)
  }

  start() {
    // Put the chart outside of the scrolling element.
    const numbers = this.table.parentElement?.matches('.scrolls') ? this.table.parentElement : this.table
    numbers.before(this.figure)
    const details = document.createElement('details')
    const summary = document.createElement('summary')
    summary.textContent = TEXTS.chartTable
    numbers.before(details)
    details.append(summary, numbers)
    this.field.addEventListener('keydown', (event) => this.#key(event))
    new MutationObserver(() => this.#plan()).observe(this.table, { subtree: true, childList: true, characterData: true, attributes: true })
    new ResizeObserver(() => this.#plot?.setSize({ width: this.field.clientWidth, height: HEIGHT })).observe(this.field)
    const redraw = () => this.#draw()
    matchMedia('(prefers-color-scheme: dark)').addEventListener('change', redraw)
    new MutationObserver(redraw).observe(document.documentElement, { attributeFilter: ['data-theme'] })
    this.#draw()
  }

  #facts() {
    return this.table.dataset.chart === 'series' ? readSeries(this.table) : readTable(this.table)
  }

  #plan() {
    if (this.#isPlanned) return
    this.#isPlanned = true
    requestAnimationFrame(() => {
      this.#isPlanned = false
      const { isTime, series } = this.facts
      const wasCounted = isCounted(this.facts)
      this.facts = this.#facts()
      const isOther = isTime !== this.facts.isTime || series.length !== this.facts.series.length || wasCounted !== isCounted(this.facts)
      if (!this.#plot || isOther) {
        this.#draw()
        return
      }
      this.#plot.setData(this.facts.values)
      this.#read(this.#plot.cursor.idx ?? null)
    })
  }

  #draw() {
    const place = this.#plot?.cursor.idx ?? null
    this.#plot?.destroy()
    this.#plot = null
    this.figure.hidden = this.facts.isEmpty
    if (this.figure.hidden) return
    this.#plot = new uPlot(this.#options(), this.facts.values, this.field)
    this.#read(place)
    // Restore the cursor after the library has drawn the scales.
    if (place !== null) requestAnimationFrame(() => this.#show(place))
  }

  #options() {
    const [text, line, ...colors] = resolve(this.field, ['var(--soft)', 'var(--line)', ...COLORS])
    this.colors = colors
    const isBars = this.table.dataset.chart === 'bars'
    const { isTime, series, most, tick } = this.facts
    const axis = { stroke: text, font: '12px system-ui, sans-serif', grid: { stroke: line, width: 1 }, ticks: { show: false } }
    return {
      width: this.field.clientWidth,
      height: HEIGHT,
      legend: { show: false },
      cursor: { drag: { x: false, y: false }, y: false, points: { show: !isBars } },
      tzDate: (/** @type {number} */ seconds) => uPlot.tzDate(new Date(seconds * 1000), 'Etc/UTC'),
      scales: {
        x: { time: isTime, range: isBars ? pad : undefined },
        y: {
          range: (/** @type {any} */ _, /** @type {number} */ bottom, /** @type {number} */ top) => [
            bottom < 0 ? bottom * 1.08 : 0,
            most ?? (top > 0 ? top * 1.08 : bottom < 0 ? 0 : 1),
          ],
        },
      },
      axes: [
        {
          ...axis,
          grid: { show: false },
          // One line of labels; by default there is room for the date below the time.
          ...(tick ? { size: 32 } : {}),
          ...(tick
            ? { values: (/** @type {any} */ _, /** @type {number[]} */ at) => at.map(tick) }
            : isTime
              ? {}
              : {
                  incrs: ROW_STEPS,
                  values: (/** @type {any} */ _, /** @type {number[]} */ at) => at.map((each) => this.facts.name(each)),
                }),
        },
        {
          ...axis,
          size: 60,
          ...(isCounted(this.facts) ? { incrs: WHOLE_STEPS } : {}),
          values: (/** @type {any} */ _, /** @type {number[]} */ at) => at.map((each) => this.facts.write(each)),
        },
      ],
      series: [
        {},
        ...series.map(({ label, isDrawn }, index) => ({
          label,
          show: isDrawn,
          stroke: colors[index % colors.length],
          fill: isBars ? colors[index % colors.length] : undefined,
          width: isBars ? 0 : 2,
          dash: isBars ? undefined : DASHES[Math.floor(index / colors.length) % DASHES.length],
          points: isBars ? { show: false } : { size: 8, fill: colors[index % colors.length], filter: isolated },
          paths: isBars ? uPlot.paths.bars({ size: [0.7, 60] }) : undefined,
        })),
      ],
      hooks: { setCursor: [(/** @type {any} */ plot) => this.#read(plot.cursor.idx ?? null)] },
    }
  }

  /** Shows the legend, with the values of a row if given. @param {number | null} row */
  #read(row) {
    const parts = this.facts.series.map(({ label, isDrawn, text }, index) => {
      const part = document.createElement('span')
      const mark = document.createElement('i')
      mark.style.color = this.colors[index % this.colors.length]
      mark.dataset.dash = String(Math.floor(index / this.colors.length) % DASHES.length)
      const value = row === null ? '' : text(row)
      const name = document.createElement('bdi')
      name.textContent = label
      part.append(...(isDrawn ? [mark] : []), name, value ? `: ${value}` : '')
      part.hidden = !isDrawn && value === ''
      return part
    })
    const when = document.createElement('strong')
    when.textContent = row === null ? '' : this.facts.name(row)
    this.reading.replaceChildren(...(row === null ? [] : [when, ' ']), ...parts)
  }

  /** @param {KeyboardEvent} event */
  #key(event) {
    const { last } = this.facts
    const now = this.#plot?.cursor.idx ?? null
    const to = { ArrowLeft: (now ?? last + 1) - 1, ArrowRight: (now ?? -1) + 1, Home: 0, End: last }[event.key]
    if (!this.#plot || to === undefined) return
    event.preventDefault()
    this.#show(to)
  }

  /** @param {number} place */
  #show(place) {
    const at = this.facts.values[0][Math.max(0, Math.min(this.facts.last, place))]
    this.#plot?.setCursor({ left: this.#plot.valToPos(at, 'x'), top: 0 })
  }
}

/** Whether all drawn values are whole numbers. @param {Facts} facts */
function isCounted({ values, series, most }) {
  const drawn = values.slice(1).filter((_, index) => series[index].isDrawn)
  return most === null && drawn.every((column) => column.every((value) => value === null || Number.isInteger(value)))
}

/** Returns the points without a neighbor, which no line connects. @param {any} plot @param {number} series @param {boolean} isEach */
function isolated(plot, series, isEach) {
  if (isEach) return null
  const values = plot.data[series]
  const isThere = (/** @type {number} */ row) => values[row] !== null && values[row] !== undefined
  return [...values.keys()].filter((row) => isThere(row) && !isThere(row - 1) && !isThere(row + 1))
}

/** Adds half a row on both sides, so that the first and last bar are complete. @param {any} plot @param {number} least @param {number} most */
function pad(plot, least, most) {
  const half = plot.data[0].length > 1 ? (most - least) / (plot.data[0].length - 1) / 2 : 0.5
  return [least - half, most + half]
}

/** Resolves CSS colors for the canvas. @param {HTMLElement} parent @param {string[]} names */
function resolve(parent, names) {
  const probe = document.createElement('span')
  parent.append(probe)
  const found = names.map((name) => {
    probe.style.color = name
    return getComputedStyle(probe).color
  })
  probe.remove()
  return found
}

if (uPlot)
  for (const table of /** @type {NodeListOf<HTMLTableElement>} */ (document.querySelectorAll('table[data-chart]'))) new Chart(table).start()
