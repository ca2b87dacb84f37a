// How history charts read a table, without a page: points with gaps, and numbers with their units.

import assert from 'node:assert/strict'
import { test } from 'node:test'
import { formatValue, readPoints, readSeries } from '../../../../services/web/static/js/series_table.js'

const SINCE = 1_795_176_000

/** The parts of a table that charts read. */
const table = (unit, step, ...lines) => ({
  dataset: { unit, step: String(step) },
  tHead: { rows: [{ cells: [{ dataset: { value: String(SINCE) } }] }] },
  tBodies: [{ rows: lines.map(([label, value]) => ({ dataset: { value }, cells: [{ textContent: ` ${label} ` }] })) }],
})

test('what is not known is no zero', () => {
  assert.deepEqual(readPoints('0,.42,,1.23e3,1e-5,'), [0, 0.42, null, 1230, 0.00001, null])
  assert.deepEqual(readPoints(''), [])
  assert.deepEqual(readPoints('Infinity,NaN,x,1'), [null, null, null, 1])
})

test('a row is a line, and the steps are times', () => {
  const facts = readSeries(table('rate', 30, ['In', '1,,3'], ['Out', '4,5,6']))
  assert.deepEqual(facts.values, [
    [SINCE, SINCE + 30, SINCE + 60],
    [1, null, 3],
    [4, 5, 6],
  ])
  assert.deepEqual([facts.isTime, facts.isEmpty, facts.last, facts.most], [true, false, 2, null])
  assert.deepEqual(
    facts.series.map(({ label, isDrawn, text }) => [label, isDrawn, text(0), text(1)]),
    [
      ['In', true, '1', 'no data'],
      ['Out', true, '4', '5'],
    ],
  )
  assert.equal(facts.name(2), '12:01')
})

test('lines of different length end where they end', () => {
  const facts = readSeries(table('rate', 30, ['A', '1'], ['B', '1,2,3']))
  assert.deepEqual(facts.values.slice(1), [
    [1, null, null],
    [1, 2, 3],
  ])
})

test('a table without lines is empty', () => {
  const facts = readSeries(table('rate', 30))
  assert.deepEqual([facts.isEmpty, facts.last, facts.values], [true, -1, [[]]])
})

test('a share has its whole as its scale', () => {
  const facts = readSeries(table('share', 30, ['A', '.01']))
  assert.deepEqual([facts.most, facts.write(0.5), facts.series[0].text(0)], [1, '50 %', '1 %'])
})

test('over more than a day, times have their day', () => {
  const hour = readSeries(table('rate', 30, ['A', '1,2']))
  const month = readSeries(table('rate', 14_400, ['A', Array(180).fill('1').join(',')]))
  assert.deepEqual([hour.name(0), month.name(0)], ['12:00', '20 Nov 12:00'])
  assert.deepEqual([hour.tick?.(SINCE + 43_200), month.tick?.(SINCE + 43_200), month.tick?.(SINCE)], ['00:00', '21 Nov', '12:00'])
})

test('numbers have their unit', () => {
  for (const [unit, value, words] of [
    ['share', 0.424, '42 %'],
    ['bytes', 0, '0 B'],
    ['bytes', 999.6, '1 kB'],
    ['bytes', 123.4e9, '123 GB'],
    ['seconds', 0.084, '84 ms'],
    ['seconds', 0.0004, '0.4 ms'],
    ['seconds', 0, '0 ms'],
    ['seconds', 2.5, '2.5 s'],
    ['celsius', 71.4, '71 °C'],
    ['rate', 12_345.6, '12,300'],
    ['count', 2.5, '2.5'],
    ['', 0.012345, '0.012'],
  ])
    assert.equal(formatValue(unit, value), words)
})
