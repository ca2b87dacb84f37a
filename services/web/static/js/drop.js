// Takes a file that is dropped anywhere on the page into the form of `data-drop`, and submits it.

import { watchDrops } from './images.js'

const input = /** @type {HTMLInputElement | null} */ (document.querySelector('[data-drop]'))
if (input?.form) {
  const { form } = input
  watchDrops(form, (files) => {
    input.files = files
    form.requestSubmit()
  })
  form.addEventListener('submit', () => {
    for (const button of form.querySelectorAll('button')) button.disabled = true
  })
}
