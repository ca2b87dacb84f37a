// A code that stands behind the # of a link, as mails have it: puts it into the field that waits for it, and takes it out of the address.
// Whoever has to sign in first would lose it there, so that this window keeps it until a page has such a field.

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
