// Reads a `<table data-chart="series">`: each row is a line, and its `data-value` has the values of all steps.

import { TEXTS } from './texts.js'

const DAY_SECONDS = 86_400
const BYTES = ['B', 'kB', 'MB', 'GB', 'TB', 'PB']

/** @typedef {import('./chart.js').Facts} Facts */

/** @param {HTMLTableElement} table @returns {Facts} */
export function readSeries(table) {
  const rows = [...table.tBodies].flatMap((body) => [...body.rows])
  const since = Number(table.tHead?.rows[0]?.cells[0]?.dataset.value)
  const step = Number(table.dataset.step)
  const lines = rows.map((row) => readPoints(row.dataset.value ?? ''))
  const count = Math.max(0, ...lines.map((line) => line.length))
  const places = Array.from({ length: count }, (_, index) => since + index * step)
  const write = (/** @type {number} */ value) => formatValue(table.dataset.unit ?? '', value)
  const isLong = count * step > DAY_SECONDS
  return {
    isTime: true,
    isEmpty: count === 0,
    last: count - 1,
    name: (index) => moment(places[index], isLong),
    series: rows.map((row, index) => ({
      label: row.cells[0]?.textContent?.trim() ?? '',
      isDrawn: true,
      text: (at) => {
        const value = lines[index][at] ?? null
        return value === null ? TEXTS.unknown : write(value)
      },
    })),
    values: [places, ...lines.map((line) => places.map((_, index) => line[index] ?? null))],
    write,
    // Percentages always use the full scale.
    most: table.dataset.unit === 'share' ? 1 : null,
    tick: (seconds) => tick(seconds, isLong),
  }
}

/** Parses values; empty means unknown. @param {string} written @returns {(number | null)[]} */
export function readPoints(written) {
  if (written === '') return []
  return written.split(',').map((each) => (each === '' || !Number.isFinite(Number(each)) ? null : Number(each)))
}

/** Formats a number with its unit. @param {string} unit @param {number} value */
export function formatValue(unit, value) {
  if (unit === 'share') return `${(value * 100).toFixed(0)} %`
  if (unit === 'bytes') return formatBytes(value)
  if (unit === 'celsius') return `${value.toFixed(0)} °C`
  if (unit === 'seconds') return value < 1 ? `${milliseconds(value * 1000)} ms` : `${digits(value)} s`
  return digits(value)
}

/** Formats milliseconds, small ones with one decimal. @param {number} value */
function milliseconds(value) {
  return value.toFixed(value > 0 && value < 9.95 ? 1 : 0)
}

/** @param {number} value */
function formatBytes(value) {
  let [size, rest] = [0, value]
  while (rest >= 999.5 && size < BYTES.length - 1) [size, rest] = [size + 1, rest / 1000]
  return `${digits(rest)} ${BYTES[size]}`
}

/** Formats a number with three digits. @param {number} value */
function digits(value) {
  return Number(value.toPrecision(3)).toLocaleString('en')
}

/** @param {number} seconds @param {boolean} isLong More than a day. */
function moment(seconds, isLong) {
  return isLong ? `${day(seconds)} ${time(seconds)}` : time(seconds)
}

/** Labels midnight with the date if the chart shows more than a day. @param {number} seconds @param {boolean} isLong */
function tick(seconds, isLong) {
  return isLong && seconds % DAY_SECONDS === 0 ? day(seconds) : time(seconds)
}

/** @param {number} seconds */
function time(seconds) {
  return new Date(seconds * 1000).toISOString().slice(11, 16)
}

/** @param {number} seconds */
function day(seconds) {
  const at = new Date(seconds * 1000)
  return `${at.getUTCDate()} ${at.toLocaleString('en', { month: 'short', timeZone: 'UTC' })}`
}
