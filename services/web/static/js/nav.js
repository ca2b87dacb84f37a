// What stands at the top of every page. In rows of links that are wider than a phone, the link of the present page is in sight.

/** The menu of the account closes like one: by Escape, and when somebody goes on elsewhere. */
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
