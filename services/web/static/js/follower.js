// Keeps the end of a growing text in sight, until its reader scrolls away from it; a button leads back.

/** As near to the end as this counts as there. */
const NEAR_PIXELS = 48

export class Follower {
  #isFollowing = true

  /** @param {HTMLElement} box What scrolls. @param {HTMLElement} button Leads to the end. */
  constructor(box, button) {
    this.box = box
    this.button = button
    box.addEventListener('scroll', () => this.#look(), { passive: true })
    // Said by the hand before the scrolling comes: an answer that grows in between must not pull back.
    box.addEventListener('wheel', (event) => event.deltaY < 0 && this.#set(false), { passive: true })
    button.addEventListener('click', () => this.follow())
  }

  /** The text has grown. */
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
