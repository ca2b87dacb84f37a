// The images of the next message: chosen, pasted or dropped, checked, and shown as thumbnails that can be removed.

import { TEXTS } from './texts.js'

/** @typedef {{name: string, url: string, bytes: number}} Picture  `url` is a data URL. */

/** The gateway's default limits for a request, which has all images of the chat. */
export const MAX_IMAGES = 8
export const MAX_BYTES = 12 * 1024 * 1024
export const TYPES = ['image/jpeg', 'image/png', 'image/webp', 'image/gif']

/**
 * Says why an image can't be added, or returns ''.
 * @param {{name: string, type: string, size: number}} file
 * @param {readonly {bytes: number}[]} others  The images that the request already has.
 */
export function findProblem({ name, type, size }, others) {
  if (!TYPES.includes(type)) return `${name} ${TEXTS.imageFormat}`
  if (others.length >= MAX_IMAGES) return TEXTS.imageCount
  return size + others.reduce((sum, { bytes }) => sum + bytes, 0) > MAX_BYTES ? `${name} ${TEXTS.imageSize}` : ''
}

/** Returns the base64 of a data URL. @param {Picture} picture */
export const toBase64 = ({ url }) => url.slice(url.indexOf(',') + 1)

/** @param {Picture} picture */
function toThumbnail({ name, url }) {
  const image = new Image()
  image.src = url
  image.alt = name
  return image
}

/** @param {readonly Picture[]} pictures */
export function toThumbnails(pictures) {
  const list = document.createElement('div')
  list.className = 'chat-images'
  list.append(...pictures.map(toThumbnail))
  return list
}

export class ImageTray {
  /** @type {Picture[]} */
  pictures = []
  /** Files are read one after another. */
  #reading = Promise.resolve()

  /**
   * @param {{list: HTMLElement, template: HTMLTemplateElement, problem: HTMLElement}} parts
   * @param {(text: string) => void} announce
   */
  constructor(parts, announce) {
    this.parts = parts
    this.announce = announce
  }

  /** Adds files, up to the first that can't be added. @param {Iterable<File>} files @param {readonly Picture[]} sent */
  add(files, sent) {
    const all = [...files]
    this.#reading = this.#reading.then(() => this.#add(all, sent))
    return this.#reading
  }

  /** @param {File[]} files @param {readonly Picture[]} sent */
  async #add(files, sent) {
    this.show('')
    for (const file of files) {
      const problem = findProblem(file, [...sent, ...this.pictures])
      const url = problem ? '' : await read(file)
      if (!url) return this.show(problem || `${file.name} ${TEXTS.imageBroken}`)
      this.#append({ name: file.name, url, bytes: file.size })
    }
    this.announce(`${TEXTS.images}: ${this.pictures.length}`)
  }

  /** @param {Picture} picture */
  #append(picture) {
    const row = /** @type {HTMLElement} */ (this.parts.template.content.firstElementChild?.cloneNode(true))
    row.prepend(toThumbnail(picture))
    const button = /** @type {HTMLButtonElement} */ (row.querySelector('button'))
    button.ariaLabel = button.title = `${TEXTS.remove} ${picture.name}`
    this.pictures.push(picture)
    this.parts.list.append(row)
    this.parts.list.hidden = false
  }

  /** Removes the image of this button. @param {HTMLElement} button @returns {HTMLElement | null} The next button for the focus. */
  remove(button) {
    const { list } = this.parts
    const index = [...list.children].findIndex((row) => row.contains(button))
    this.pictures.splice(index, 1)
    list.children[index]?.remove()
    list.hidden = !this.pictures.length
    this.show('')
    this.announce(`${TEXTS.images}: ${this.pictures.length}`)
    return list.children[Math.min(index, this.pictures.length - 1)]?.querySelector('button') ?? null
  }

  /** Waits for files that are being read. */
  ready() {
    return this.#reading
  }

  /** Returns the images, and is empty then. */
  take() {
    const taken = this.pictures
    this.pictures = []
    this.parts.list.replaceChildren()
    this.parts.list.hidden = true
    this.show('')
    return taken
  }

  /** Shows why an image was refused. @param {string} problem */
  show(problem) {
    this.parts.problem.textContent = problem
    this.parts.problem.hidden = problem === ''
  }
}

/** Returns a data URL, or '' for a file that the browser can't decode. @param {File} file @returns {Promise<string>} */
async function read(file) {
  try {
    const reader = new FileReader()
    const url = await new Promise((resolve, reject) => {
      reader.onload = () => resolve(String(reader.result))
      reader.onerror = reject
      reader.readAsDataURL(file)
    })
    const image = new Image()
    image.src = url
    await image.decode()
    return url
  } catch {
    return ''
  }
}

/**
 * Calls `take` with files that the user chooses, pastes within `root`, or drops.
 * @param {HTMLElement} root @param {HTMLInputElement} input @param {(files: Iterable<File>) => void} take
 */
export function watchFiles(root, input, take) {
  input.addEventListener('change', () => {
    take(input.files ?? [])
    input.value = ''
  })
  root.addEventListener('paste', ({ clipboardData: copied }) => {
    // Office programs add a picture of the text that was copied.
    const isText = ['text/plain', 'text/html'].every((type) => copied?.types.includes(type))
    if (copied?.files.length && !isText) take(copied.files)
  })
  watchDrops(root, take)
}

/**
 * Calls `take` with files that the user drops, and marks `root` while they are dragged.
 * @param {HTMLElement} root @param {(files: FileList) => void} take
 */
export function watchDrops(root, take) {
  /** @param {DragEvent} event */
  function drag(event) {
    if (!event.dataTransfer?.types.includes('Files') || (event.type === 'dragleave' && event.relatedTarget)) return
    event.preventDefault()
    root.toggleAttribute('data-dropping', event.type === 'dragover')
    if (event.type === 'drop') take(event.dataTransfer.files)
  }
  // On the whole page: a browser leaves it for a file that is dropped elsewhere.
  for (const name of /** @type {const} */ (['dragover', 'dragleave', 'drop'])) document.addEventListener(name, drag)
}
