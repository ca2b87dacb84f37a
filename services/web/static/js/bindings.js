// Applies live values to the page: texts, some attributes, visibility and list rows. Changes only what differs.

/** @typedef {Record<string, unknown>} Values  Changed values, by path. @typedef {{id: string} & Values} Row */

/** Attributes that cannot load or run anything. OWN_PAGES may only hold paths on this site. */
const ATTRIBUTES = new Set(
  'value datetime title aria-label aria-valuenow aria-valuetext data-state data-value data-label data-confirm data-copy'
    .split(' ')
    .concat('width height x y x1 x2 y1 y2 cx cy r d points min max low high optimum'.split(' ')),
)
const OWN_PAGES = new Set(['href', 'action'])
/** The maximum of rows; the server sends far fewer. */
const MAX_ROWS = 500

/**
 * @param {ParentNode} root
 * @param {Values} values
 */
export function apply(root, values) {
  for (const element of within(root, 'data-live')) update(values, element.dataset.live, (value) => setText(element, value))
  for (const element of within(root, 'data-live-show')) {
    update(values, element.dataset.liveShow, (value) => {
      element.hidden = !value || (Array.isArray(value) && value.length === 0)
    })
  }
  for (const element of within(root, 'data-live-attr')) {
    for (const pair of (element.dataset.liveAttr ?? '').split(' ')) {
      const [name, path] = pair.split(/:(.*)/s)
      update(values, path, (value) => setAttribute(element, name, value))
    }
  }
  for (const list of within(root, 'data-live-list')) {
    update(values, list.dataset.liveList, (value) => {
      if (Array.isArray(value)) setRows(list, value.slice(0, MAX_ROWS))
    })
  }
}

/** Finds the elements with this attribute, except those in list rows. @param {ParentNode} root @param {string} attribute */
function within(root, attribute) {
  const found = /** @type {HTMLElement[]} */ ([...root.querySelectorAll(`[${attribute}]`)])
  if (root instanceof HTMLElement && root.hasAttribute(attribute)) found.push(root)
  return found.filter((element) => {
    const list = element.parentElement?.closest('[data-live-list]')
    return element === root || !list || !root.contains(list)
  })
}

/** @param {Values} values @param {string | undefined} path @param {(value: unknown) => void} set */
function update(values, path, set) {
  if (path && Object.hasOwn(values, path)) set(values[path])
}

/** @param {Element} element @param {unknown} value */
function setText(element, value) {
  const text = String(value ?? '')
  if (element.textContent !== text) element.textContent = text
}

/** @param {HTMLElement} element @param {string} name @param {unknown} value */
function setAttribute(element, name, value) {
  const text = String(value ?? '')
  if (OWN_PAGES.has(name) ? !/^\/(?![/\\])/.test(text) : !ATTRIBUTES.has(name)) return
  if (element.getAttribute(name) !== text) element.setAttribute(name, text)
}

/** @param {HTMLElement} list @param {Row[]} rows */
function setRows(list, rows) {
  const template = list.querySelector(':scope > template')
  if (!(template instanceof HTMLTemplateElement)) throw new Error('a data-live-list needs a <template> as its child')
  const present = new Map()
  const wanted = new Set(rows.map((row) => String(row.id)))
  for (const element of /** @type {HTMLElement[]} */ ([...list.querySelectorAll(':scope > [data-id]')])) {
    const id = element.dataset.id
    // Remove rows first, so that the remaining rows need not move: a moved row loses the focus.
    if (!wanted.has(String(id)) || present.has(id)) element.remove()
    else present.set(id, element)
  }
  /** @type {Element | null} */
  let at = list.querySelector(':scope > [data-id]')
  for (const row of rows) {
    const id = String(row.id)
    const element = present.get(id) ?? clone(template, id)
    present.set(id, element)
    apply(element, row)
    if (element === at) at = element.nextElementSibling
    else list.insertBefore(element, at)
  }
}

/** @param {HTMLTemplateElement} template @param {string} id */
function clone(template, id) {
  const element = /** @type {HTMLElement} */ (template.content.firstElementChild?.cloneNode(true))
  element.dataset.id = id
  return element
}
