// Applies the theme (light, dark or system) and stores the choice in this browser.
// A classic script in <head> without defer, so that pages do not flash in the wrong colors.
;(() => {
  const KEY = 'aimesh-theme'
  const read = () => {
    try {
      return localStorage.getItem(KEY)
    } catch {
      return null // storage is forbidden: use the system theme
    }
  }
  // Fall back to the account's theme, which the server writes into the page.
  let choice = read() ?? document.documentElement.dataset.theme ?? null

  const apply = () => {
    const root = document.documentElement
    if (choice === 'light' || choice === 'dark') root.dataset.theme = choice
    else {
      choice = 'system'
      delete root.dataset.theme
    }
    for (const button of document.querySelectorAll('[data-theme-choice]')) {
      button.setAttribute('aria-pressed', String(button.getAttribute('data-theme-choice') === choice))
    }
  }

  apply()
  addEventListener('DOMContentLoaded', apply)
  addEventListener('storage', (event) => {
    if (event.key !== KEY && event.key !== null) return
    choice = event.newValue
    apply()
  })
  addEventListener('click', (event) => {
    const button = event.target instanceof Element && event.target.closest('[data-theme-choice]')
    if (!button) return
    choice = button.getAttribute('data-theme-choice')
    apply()
    try {
      localStorage.setItem(KEY, String(choice))
    } catch {
      // the choice applies to this page only
    }
  })
})()
