// The navigation: closes the account menu, and scrolls the current page's link into view.

/** Closes on Escape, and on a click or focus elsewhere. */
const menu = document.querySelector('details.account')

if (menu instanceof HTMLDetailsElement) {
  const isElsewhere = (/** @type {EventTarget | null} */ target) => target instanceof Node && !menu.contains(target)
  document.addEventListener('click', (event) => {
    if (isElsewhere(event.target)) menu.open = false
  })
  menu.addEventListener('focusout', (event) => {
    if (isElsewhere(event.relatedTarget)) menu.open = false
  })
  menu.addEventListener('keydown', (event) => {
    if (event.key !== 'Escape' || !menu.open) return
    menu.open = false
    menu.querySelector('summary')?.focus()
  })
}

for (const link of document.querySelectorAll('nav [aria-current]')) link.scrollIntoView({ block: 'nearest', inline: 'center' })
