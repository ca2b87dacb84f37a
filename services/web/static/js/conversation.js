// A chat and its state changes. Pure: every function returns a new conversation.

import { toBase64 } from './images.js'

/**
 * @typedef {{request_id: string, prompt_tokens: number, completion_tokens: number, cost?: string, tokens_per_second?: number, note?: string}} Usage
 * @typedef {{code: string, message: string, hint: string}} Problem
 * @typedef {import('./images.js').Picture} Picture
 * @typedef {{role: 'user' | 'assistant', text: string, images: readonly Picture[], reasoning: string, state: 'done' | 'writing' | 'stopped' | 'failed',
 *   waiting: string, usage: Usage | null, problem: Problem | null, requestId: string, rating: '' | 'up' | 'down'}} Message
 * @typedef {{messages: readonly Message[]}} Conversation
 */

/** @type {Conversation} */
export const EMPTY = Object.freeze({ messages: [] })
/** @type {Message} */
const BLANK = {
  role: 'assistant',
  text: '',
  images: [],
  reasoning: '',
  state: 'done',
  waiting: '',
  usage: null,
  problem: null,
  requestId: '',
  rating: '',
}

/** @param {Conversation} chat */
export const isWriting = (chat) => chat.messages.at(-1)?.state === 'writing'

/** @param {Conversation} chat @param {string} text @param {readonly Picture[]} [images] @returns {Conversation} */
export function addPrompt(chat, text, images = []) {
  if (isWriting(chat) || !text.trim()) return chat
  return { messages: [...chat.messages, { ...BLANK, role: 'user', text, images }, { ...BLANK, state: 'writing' }] }
}

/** Asks the last question again, without its answer. @param {Conversation} chat @returns {Conversation} */
export function regenerate(chat) {
  if (isWriting(chat) || chat.messages.length < 2) return chat
  return { messages: [...chat.messages.slice(0, -1), { ...BLANK, state: 'writing' }] }
}

/** @param {Conversation} chat @param {Partial<Message>} changes @returns {Conversation} */
function changeLast(chat, changes) {
  const last = chat.messages.at(-1)
  return last ? { messages: [...chat.messages.slice(0, -1), { ...last, ...changes }] } : chat
}

/**
 * Applies an event of the running answer. Unknown events are ignored.
 * @param {Conversation} chat
 * @param {string} event
 * @param {any} facts
 * @returns {Conversation}
 */
export function receive(chat, event, facts) {
  const last = chat.messages.at(-1)
  if (last?.state !== 'writing') return chat
  switch (event) {
    case 'began':
      return changeLast(chat, { requestId: facts.request_id })
    case 'thought':
      return changeLast(chat, { reasoning: last.reasoning + facts.text, waiting: '' })
    case 'chunk':
      return changeLast(chat, { text: last.text + facts.text, waiting: '' })
    case 'waiting':
      return changeLast(chat, { waiting: facts.message })
    case 'usage':
      return changeLast(chat, { usage: facts, requestId: facts.request_id })
    case 'problem':
      return changeLast(chat, {
        state: 'failed',
        waiting: '',
        problem: { code: facts.code, message: facts.message, hint: facts.hint ?? '' },
      })
  }
  return chat
}

/** @param {Conversation} chat @param {Message['state']} state @returns {Conversation} */
export const end = (chat, state) => (isWriting(chat) ? changeLast(chat, { state, waiting: '' }) : chat)

/** Whether an answer can be rated: a complete one, or a stopped one with text. @param {Message | undefined} message */
export const canBeRated = (message) => Boolean(message?.requestId && (message.usage || (message.state === 'stopped' && message.text)))

/** @param {Conversation} chat @param {string} requestId @param {Message['rating']} rating @returns {Conversation} */
export function rate(chat, requestId, rating) {
  return { messages: chat.messages.map((each) => (requestId && each.requestId === requestId ? { ...each, rating } : each)) }
}

/** Returns the messages for the model, without unanswered questions and empty answers. @param {Conversation} chat */
export function toSent(chat) {
  const { messages } = chat
  return messages.filter(({ role, text }, index) => {
    const answer = messages[index + 1]
    const isUnanswered = role === 'user' && answer && !answer.text && answer.state !== 'writing'
    return text && !isUnanswered && !(role === 'assistant' && index === messages.length - 1 && isWriting(chat))
  })
}

/** Returns them as the server reads them. @param {Conversation} chat */
export const toMessages = (chat) =>
  toSent(chat).map(({ role, text, images, reasoning }) => ({
    role,
    content: text,
    ...(images.length ? { images: images.map(toBase64) } : {}),
    ...(reasoning ? { reasoning } : {}),
  }))

/** Returns the images that the next request has already. @param {Conversation} chat */
export const toPictures = (chat) => toSent(chat).flatMap(({ images }) => images)
