import assert from 'node:assert/strict'
import { getEventListeners } from 'node:events'
import { test } from 'node:test'
import { Deadline, pause, until } from '../src/deadline.js'
import { DeadlineExceeded } from '../src/errors.js'

test('a call ends when its time is over, and says so', (context) => {
  context.mock.timers.enable({ apis: ['setTimeout'] })
  const deadline = new Deadline(5000)
  context.mock.timers.tick(9000)
  assert.equal(deadline.signal.aborted, false, 'it had not begun')
  deadline.begin()
  context.mock.timers.tick(3000)
  deadline.begin()
  context.mock.timers.tick(1999)
  assert.equal(deadline.signal.aborted, false)
  context.mock.timers.tick(1)
  assert.ok(deadline.signal.reason instanceof DeadlineExceeded)
  assert.match(deadline.signal.reason.message, /5000 ms/)
})

test('a paused deadline does not run, and a renewed one starts over', (context) => {
  context.mock.timers.enable({ apis: ['setTimeout'] })
  const deadline = new Deadline(100, undefined, (milliseconds) => `silent for ${milliseconds}`)
  deadline.begin()
  deadline.hold()
  context.mock.timers.tick(1000)
  deadline.renew(50)
  context.mock.timers.tick(49)
  assert.equal(deadline.signal.aborted, false)
  context.mock.timers.tick(1)
  assert.equal(deadline.signal.reason, 'silent for 50')
})

test("a caller's signal ends the call with its reason, and is left alone after the end", () => {
  const control = new AbortController()
  const [one, other] = [new Deadline(1000, control.signal), new Deadline(1000, control.signal)]
  one.begin()
  other.begin()
  assert.equal(getEventListeners(control.signal, 'abort').length, 2)
  other.end()
  control.abort('enough')
  assert.equal(one.signal.reason, 'enough')
  assert.equal(other.signal.aborted, false)
  assert.equal(getEventListeners(control.signal, 'abort').length, 0)
  const late = new Deadline(1000, control.signal)
  late.begin()
  assert.equal(late.signal.reason, 'enough')
})

test('what takes no signal is left when the signal says so', async () => {
  const control = new AbortController()
  const waiting = until(control.signal, new Promise(() => undefined))
  control.abort(new Error('enough'))
  await assert.rejects(waiting, /enough/)
  await assert.rejects(until(control.signal, Promise.reject(new Error('too late'))), /enough|too late/)
  await assert.rejects(pause(60_000, control.signal), /enough/)
  assert.equal(await until(new AbortController().signal, Promise.resolve(7)), 7)
})

test('who waits often leaves nothing behind at the signal', async () => {
  const { signal } = new AbortController()
  for (let time = 0; time < 20; time++) await until(signal, Promise.resolve())
  await assert.rejects(until(signal, Promise.reject(new Error('no'))))
  await pause(1, signal)
  assert.equal(getEventListeners(signal, 'abort').length, 0)
})
