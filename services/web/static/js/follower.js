// Scrolls along with a growing text until the user scrolls up; a button resumes it.

/** The distance from the end that counts as the end. */
const NEAR_PIXELS = 48

export class Follower {
  #isFollowing = true

  /** @param {HTMLElement} box The scrolling element. @param {HTMLElement} button Scrolls to the end. */
  constructor(box, button) {
    this.box = box
    this.button = button
    box.addEventListener('scroll', () => this.#look(), { passive: true })
    // The wheel event precedes the scroll event; without it, new text in between would scroll back.
    box.addEventListener('wheel', (event) => event.deltaY < 0 && this.#set(false), { passive: true })
    button.addEventListener('click', () => this.follow())
  }

  /** Call this when the text has grown. */
  keepUp() {
    if (this.#isFollowing) this.box.scrollTop = this.box.scrollHeight
  }

  follow() {
    this.#set(true)
    this.keepUp()
  }

  #look() {
    this.#set(this.box.scrollHeight - this.box.scrollTop - this.box.clientHeight <= NEAR_PIXELS)
  }

  /** @param {boolean} isFollowing */
  #set(isFollowing) {
    this.#isFollowing = isFollowing
    this.button.hidden = isFollowing
  }
}
