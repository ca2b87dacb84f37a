// Rows of links that are wider than a phone: the link of the present page is in sight.

for (const link of document.querySelectorAll('nav [aria-current]')) link.scrollIntoView({ block: 'nearest', inline: 'center' })
