// Buttons that copy: `data-copy="#id"` an element's text or value, `data-copy=""` the code of the figure that the button is in.

import { TEXTS } from './texts.js'

const SHOWN_MS = 2000
/** @type {WeakMap<Element, {label: string | null, timer: ReturnType<typeof setTimeout>}>} */
const shown = new WeakMap()

/** Read out by screen readers; there from the start, because regions that come with their text are not read. */
const region = document.createElement('div')
region.className = 'unseen'
region.role = 'status'
document.body.append(region)

document.addEventListener('click', (event) => {
  const button = event.target instanceof Element && event.target.closest('button[data-copy]')
  if (!(button instanceof HTMLElement)) return
  const source = button.dataset.copy ? document.querySelector(button.dataset.copy) : button.closest('figure')?.querySelector('code')
  if (source) copy(source).then((isCopied) => tell(button, isCopied ? TEXTS.copied : TEXTS.copyByHand))
})

/** False where the browser does not let us: the text is selected then. @param {Element} source */
async function copy(source) {
  const isField = source instanceof HTMLInputElement || source instanceof HTMLTextAreaElement
  try {
    await navigator.clipboard.writeText(isField ? source.value : (source.textContent ?? ''))
    return true
  } catch {
    // Over plain HTTP there is no clipboard, and a person may have forbidden it.
    if (isField) source.select()
    else getSelection()?.selectAllChildren(source)
    return false
  }
}

/** @param {HTMLElement} button @param {string} text */
function tell(button, text) {
  const before = shown.get(button)
  clearTimeout(before?.timer)
  const label = before ? before.label : button.textContent
  // The button keeps its place while its word changes.
  button.style.minWidth = `${button.offsetWidth}px`
  button.textContent = text
  region.textContent = text
  const timer = setTimeout(() => {
    shown.delete(button)
    button.textContent = label
    button.style.minWidth = ''
    region.textContent = ''
  }, SHOWN_MS)
  shown.set(button, { label, timer })
}
