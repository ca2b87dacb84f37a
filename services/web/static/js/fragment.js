// Moves a code from the URL fragment of an emailed link into its field. If the user must sign in first, the tab keeps the code until
// a page has the field.

const KEY = 'aimesh-code'
const CODE = /^#[\w.~-]{16,200}$/

const field = document.querySelector('input[data-from-address]')
const isCode = CODE.test(location.hash)
const code = isCode ? location.hash.slice(1) : field && sessionStorage.getItem(KEY)

if (isCode) history.replaceState(null, '', location.pathname + location.search)
if (field instanceof HTMLInputElement) {
  if (code && !field.value) field.value = code
  sessionStorage.removeItem(KEY)
} else if (isCode) sessionStorage.setItem(KEY, code)
