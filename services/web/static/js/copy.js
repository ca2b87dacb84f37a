// Copy buttons: `data-copy="#id"` copies an element's text or value, `data-copy=""` copies the code of the surrounding figure.

import { TEXTS } from './texts.js'

const SHOWN_MS = 2000
/** @type {WeakMap<Element, {label: string | null, timer: ReturnType<typeof setTimeout>}>} */
const shown = new WeakMap()

/** Announces the result. It exists from the start, because screen readers skip regions that appear with their text. */
const region = document.createElement('div')
region.className = 'unseen'
region.role = 'status'
document.body.append(region)

document.addEventListener('click', (event) => {
  const button = event.target instanceof Element && event.target.closest('button[data-copy]')
  if (!(button instanceof HTMLElement)) return
  const source = button.dataset.copy ? document.querySelector(button.dataset.copy) : button.closest('figure')?.querySelector('code')
  if (source) copy(button, source)
})

/**
 * Copies `text`, or the text of `source`; selects `source` if the browser forbids it. The button shows the result.
 * @param {HTMLElement} button
 * @param {Element} source
 * @param {string} [text]
 */
export async function copy(button, source, text) {
  const isField = source instanceof HTMLInputElement || source instanceof HTMLTextAreaElement
  try {
    await navigator.clipboard.writeText(text ?? (isField ? source.value : (source.textContent ?? '')))
    showStatus(button, TEXTS.copied)
  } catch {
    // There is no clipboard over plain HTTP, and users can forbid it.
    if (isField) source.select()
    else getSelection()?.selectAllChildren(source)
    showStatus(button, TEXTS.copyByHand)
  }
}

/** @param {HTMLElement} button @param {string} text */
function showStatus(button, text) {
  const before = shown.get(button)
  clearTimeout(before?.timer)
  const isIcon = button.classList.contains('icon')
  const label = before ? before.label : isIcon ? button.title : button.textContent
  if (isIcon) {
    button.title = text
    button.dataset.copied = String(text === TEXTS.copied)
  } else {
    // Keep the width while the text changes.
    button.style.minWidth = `${button.offsetWidth}px`
    button.textContent = text
  }
  region.textContent = text
  const timer = setTimeout(() => {
    shown.delete(button)
    if (isIcon) {
      button.title = label ?? ''
      delete button.dataset.copied
    } else {
      button.textContent = label
      button.style.minWidth = ''
    }
    region.textContent = ''
  }, SHOWN_MS)
  shown.set(button, { label, timer })
}
