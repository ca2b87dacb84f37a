// Formats the Markdown of a runbook. Without JavaScript the text itself is shown.

import { show } from './markdown_view.js'

for (const source of document.querySelectorAll('pre[data-markdown]')) {
  const formatted = document.createElement('div')
  formatted.className = 'markdown'
  show(source.textContent ?? '', formatted)
  source.replaceWith(formatted)
}
