'use strict'
const assert = require('node:assert/strict')
const { test } = require('node:test')
const { Names } = require('../names')

/** A resolver whose answers the test gives, one by one. */
function resolver() {
  const questions = []
  const ask = (host) => new Promise((resolve, reject) => questions.push({ host, resolve, reject }))
  return { ask, questions }
}

test('an address needs no resolver, and an address before a name is added to its addresses', async () => {
  const names = new Names({ ask: async () => ['203.0.113.6'] })
  assert.deepEqual(await names.addressesOf('203.0.113.5'), ['203.0.113.5'])
  assert.deepEqual(await names.addressesOf('203.0.113.5@dht.test'), ['203.0.113.5', '203.0.113.6'])
})

test('every call resolves the name again, so it may move', async () => {
  let present = ['203.0.113.5']
  const names = new Names({ ask: async () => present })
  assert.deepEqual(await names.addressesOf('dht.test'), ['203.0.113.5'])
  present = ['203.0.113.6']
  assert.deepEqual(await names.addressesOf('dht.test'), ['203.0.113.6'])
})

test('the last addresses stay if the resolver fails or returns none', async () => {
  const answers = [Promise.resolve(['203.0.113.5']), Promise.reject(new Error('EAI_AGAIN')), Promise.resolve([])]
  const names = new Names({ ask: () => answers.shift() })
  for (let i = 0; i < 3; i++) assert.deepEqual(await names.addressesOf('dht.test'), ['203.0.113.5'])
  assert.equal(answers.length, 0)
})

test('a hanging resolver is asked once, blocks nobody, and its late answer is used', async () => {
  const { ask, questions } = resolver()
  const names = new Names({ ask, patienceMs: 1 })
  assert.deepEqual(await names.addressesOf('dht.test'), [])
  assert.deepEqual(await names.addressesOf('dht.test'), [])
  assert.equal(questions.length, 1)
  questions[0].resolve(['203.0.113.5'])
  await new Promise(setImmediate)
  assert.deepEqual(await names.addressesOf('dht.test'), ['203.0.113.5'])
  assert.equal(questions.length, 2)
})
