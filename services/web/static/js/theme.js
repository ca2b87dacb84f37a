// Light, dark or as the system says: keeps the choice in this browser and sets it before anything is drawn.
// A classic script for <head>, without defer, so that no page flashes in the other colours.
;(() => {
  const KEY = 'aimesh-theme'
  const read = () => {
    try {
      return localStorage.getItem(KEY)
    } catch {
      return null // storage is forbidden: as the system says
    }
  }
  // Without a choice in this browser that of the account holds, which the server has written into the page.
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
      // it holds for this page then
    }
  })
})()
