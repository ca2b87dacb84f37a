// Closes dialogs, and asks for confirmation before submitting a form with `data-confirm`.

import { TEXTS } from './texts.js'

/** Confirmed forms, until they are submitted. @type {WeakSet<HTMLFormElement>} */
const confirmed = new WeakSet()

document.addEventListener('submit', async (event) => {
  const form = /** @type {HTMLFormElement} */ (event.target)
  const submitter = /** @type {HTMLElement | null} */ (event.submitter)
  const asking = submitter?.dataset.confirm ? submitter : form
  if (event.defaultPrevented || !asking.dataset.confirm || confirmed.delete(form)) return
  event.preventDefault()
  if (await confirmAction(asking.dataset.confirm, asking.dataset.confirmButton || submitter?.textContent?.trim() || TEXTS.proceed)) {
    confirmed.add(form)
    form.requestSubmit(submitter)
    // Ask again if a field was invalid.
    confirmed.delete(form)
  }
})

document.addEventListener('click', (event) => {
  const button = event.target instanceof Element && event.target.closest('[data-close]')
  if (button) button.closest('dialog')?.close()
})

/**
 * Asks in a dialog. Escape and Cancel mean no.
 * @param {string} question
 * @param {string} yes  The label of the confirm button.
 * @returns {Promise<boolean>}
 */
function confirmAction(question, yes) {
  const dialog = document.createElement('dialog')
  const text = document.createElement('p')
  text.id = 'confirm-question'
  text.textContent = question
  dialog.className = 'confirm'
  dialog.setAttribute('aria-labelledby', text.id)
  const form = document.createElement('form')
  form.method = 'dialog'
  form.className = 'actions'
  form.append(toButton('', TEXTS.cancel, 'quiet'), toButton('yes', yes, 'danger'))
  dialog.append(text, form)
  document.body.append(dialog)
  return new Promise((resolve) => {
    dialog.addEventListener('close', () => {
      dialog.remove()
      resolve(dialog.returnValue === 'yes')
    })
    dialog.showModal()
  })
}

/** @param {string} value @param {string} label @param {string} look */
function toButton(value, label, look) {
  const button = document.createElement('button')
  button.value = value
  button.textContent = label
  button.className = look
  return button
}
