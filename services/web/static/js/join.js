// Submits the code of an invitation link at once, so that the link itself shows the invitation. Without scripts the user pastes it.

import './fragment.js'

const form = document.querySelector('form[data-join]')
if (form instanceof HTMLFormElement) {
  const field = /** @type {HTMLInputElement} */ (form.elements.namedItem('code'))
  if (field.value) form.requestSubmit()
}
