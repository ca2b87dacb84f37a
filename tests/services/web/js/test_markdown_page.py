"""Model answers in a real page: a hundred attacks do nothing, and a long answer keeps the page responsive."""

import json

import pytest

from tests.acceptance.chromium import Browser, Page
from tests.services.web.js import axe
from tests.services.web.js.payloads import nested, payloads
from tests.services.web.js.site import ReceivedRequest, Site, opened

pytestmark = pytest.mark.asyncio(loop_scope="module")

#: Renders each text in two articles: at once, and as if streamed, letter by letter or in 200 pieces.
DRAW = """
import { show, Writing } from '/js/markdown_view.js'
window.runs = []
window.ran = (name) => window.runs.push(name)
window.draw = (texts) => {
  for (const text of texts) {
    const whole = document.createElement('article')
    const grown = document.createElement('article')
    document.querySelector('main').append(whole, grown)
    show(text, whole)
    const writing = new Writing(grown, { schedule: (turn) => turn(), now: () => 0 })
    const size = Math.ceil(text.length / 200)
    for (let from = 0; from < text.length; from += size) writing.append(text.slice(from, from + size))
    writing.finish()
  }
}
"""
#: Renders the same texts without sanitizing: as HTML, each in its own frame.
CARELESS = """
window.runs = []
window.ran = (name) => window.runs.push(name)
window.draw = (texts) => {
  for (const text of texts) {
    const frame = document.createElement('iframe')
    const pictures = text.replace(/!\\[[^\\]]*\\]\\(<?([^) >]*)[^)]*\\)/g, '<img src="$1">')
    frame.srcdoc = pictures.replace(/\\[[^\\]]*\\]\\(([^)]*)\\)/g, '<a href="$1">')
    document.querySelector('main').append(frame)
  }
}
"""
TAGS = """P BR H3 H4 H5 H6 PRE CODE FIGURE FIGCAPTION SPAN BUTTON HR BLOCKQUOTE UL OL LI DIV TABLE THEAD TBODY TR TH TD A EM STRONG DEL"""
#: For each article: its text, and its elements with their attributes and link targets.
DRAWN = """
[...document.querySelectorAll('article')].map(article => [article.textContent, [...article.querySelectorAll('*')].map(each =>
  [each.tagName, each.getAttributeNames(), each.tagName === 'A' ? [each.protocol, each.rel, each.target] : null])])
"""


async def draw(page: Page, site: Site, script: str, texts: list[str]) -> None:
    """Draw the texts, and wait until everything that they could trigger has run."""

    async def answer(page_request: ReceivedRequest) -> None:
        await page_request.answer(200, script, "text/javascript")

    async def ping(page_request: ReceivedRequest) -> None:
        await page_request.answer(200, "pong", "text/plain")

    site.answers |= {"/draw.js": answer, "/ping": ping}
    await page.goto(f"{site.origin}/")
    await page.evaluate(f"draw({json.dumps(texts)})")
    frames = "new Promise(done => requestAnimationFrame(() => requestAnimationFrame(() => setTimeout(done, 40))))"
    for _ in range(3):
        await page.evaluate(frames)
        # Queued after all other requests.
        assert await page.evaluate("fetch('/ping').then(answer => answer.text())") == "pong"


async def test_hundred_attacks_run_and_load_nothing(chrome: Browser) -> None:
    site = Site()
    site.show("", head='<script type="module" src="/draw.js"></script>')
    texts = [*payloads(), nested()]
    async with opened(chrome, site) as page:
        await draw(page, site, DRAW, texts)
        modules = {f"/js/{name}.js" for name in ("markdown_view", "markdown", "markdown_text", "texts")}
        expected = modules | {"/", "/style.css", "/scripts.css", "/draw.js", "/ping"}
        assert set(site.requested_paths) == expected
        assert {url.removeprefix(site.origin) for url in page.requests if not url.startswith("data:")} == expected
        assert await page.evaluate("window.runs") == []
        articles = await page.evaluate(DRAWN)
        assert len(articles) == 2 * len(texts) == 202
        for number, (shown, elements) in enumerate(articles):
            text = texts[number // 2]
            for tag, attributes, link in elements:
                assert tag in TAGS.split(), text
                assert not [name for name in attributes if name.startswith("on") or name in ("src", "srcset", "srcdoc", "background")], text
                if link:
                    assert link[0] in ("http:", "https:", "mailto:"), text
                    assert link[1:] == ["noopener noreferrer nofollow", "_blank"], text
            # Text that isn't Markdown is shown literally.
            assert ("onerror" in shown) == ("onerror" in text and not text.startswith("```")), text
        # Drawing at once and in pieces gives the same result.
        assert await page.evaluate(
            "[...document.querySelectorAll('article')].every((e, n, all) => n % 2 || e.innerHTML === all[n + 1].innerHTML)"
        )


async def test_same_attacks_succeed_without_sanitizing(chrome: Browser) -> None:
    """Proof that the test above can fail: without sanitizing, many attacks run or request something."""
    site = Site()

    async def loose(page_request: ReceivedRequest) -> None:
        page = '<!doctype html><title>x</title><link rel="icon" href="data:,"><main></main><script type="module" src="/draw.js"></script>'
        await page_request.begin(200, "text/html", content_security_policy="img-src 'self' data:; connect-src 'self'")
        await page_request.write(page)
        await page_request.end()

    site.answers["/"] = loose
    async with opened(chrome, site) as page:
        await draw(page, site, CARELESS, payloads())
        ran = {int(name) for name in await page.evaluate("window.runs")}
        sent = {
            int(path.rpartition("/")[2])
            for path in site.requested_paths
            if path.startswith("/beacon/") and path.rpartition("/")[2].isdigit()
        }
        assert len(ran) >= 25
        assert len(sent) >= 25
        # This page is faulty on purpose: hide its problems from the final check.
        page.problems.clear()
        page.requests.clear()
        await page.evaluate("window.violations = []")


SAMPLE = """# Title

A *paragraph* with **all** `kinds` of ~~text~~ and [a link](https://example.org/).

- one
  1. two
- three

> quoted

```python
print("a very long line of code that scrolls" + "in its own box and not with the page, because it is wider than a telephone is" * 3)
```

| name | value |
|---|--:|
| a | 1 |

---
"""


async def test_answer_is_accessible(chrome: Browser) -> None:
    site = Site()
    site.show("<h2>Answers</h2>", head='<script type="module" src="/draw.js"></script>')
    async with opened(chrome, site) as page:
        await draw(page, site, DRAW, [SAMPLE])
        # The second article would have regions with the same names.
        await page.evaluate("document.querySelectorAll('article')[1].remove()")
        for dark, width in ((False, 1280), (True, 400)):
            await page.look(dark=dark, width=width)
            assert [each for each in await axe.violations(page) if each.rule != "heading-order"] == []
        headings = await page.evaluate("[...document.querySelectorAll('article :is(h1, h2, h3, h4)')].map(each => each.tagName)")
        assert headings == ["H3"]


#: Appends the tokens of an answer, draws once per frame, and returns the total drawing time.
GROW = """
(async () => {
  const { Writing } = await import('/js/markdown_view.js')
  const article = document.createElement('article')
  document.querySelector('main').append(article)
  let waiting = null, spent = 0, frames = 0, began = 0, draws = 0
  const onDrawn = () => {
    draws += 1
    // The layout is part of what it takes, as it is for the page that keeps the end in sight.
    article.getBoundingClientRect()
  }
  const writing = new Writing(article, { schedule: (turn) => { waiting = turn }, now: () => frames + performance.now() - began, onDrawn })
  began = performance.now()
  for (let token = 0; token < COUNT; token += 1) {
    writing.append(TEXT)
    if (token % 16) continue
    // The next frame comes 16 ms later, as a clock sees it that also sees what drawing takes.
    frames += 16
    const turn = waiting
    waiting = null
    const before = performance.now()
    turn?.()
    spent += performance.now() - before
  }
  const before = performance.now()
  writing.finish()
  spent += performance.now() - before
  const length = article.textContent.length
  article.remove()
  return { spent, length, draws, seconds: (frames + performance.now() - began) / 1000 }
})()
"""
GROWING = {
    "paragraphs": "token % 60 ? 'word ' : 'end.\\n\\n'",
    "one endless list": "token % 12 ? 'word ' : '\\n- **item** '",
    "one endless block of code": "token % 12 ? 'word ' : token ? '\\n' : '```js\\n'",
    "one endless table": "token % 12 ? 'word ' : token ? '| `2` |\\n|' : 'a | b |\\n|--|--|\\n|'",
}


@pytest.mark.nightly("clock")
async def test_long_answer_is_rendered_in_linear_time(chrome: Browser) -> None:
    site = Site()
    site.show("")
    async with opened(chrome, site) as page:
        await page.goto(f"{site.origin}/")
        for name, text in GROWING.items():
            took = await page.evaluate(GROW.replace("COUNT", "20000").replace("TEXT", f"({text})"))
            print(f"{name}: {took['spent']:.0f} ms in {took['draws']} drawings of {took['seconds']:.0f} s, {took['length']:,} characters")
            assert took["length"] > 60_000, name
            # Drawing takes at most an eighth of the time, plus one full rendering at the end.
            assert took["spent"] < took["seconds"] * 1000 * 0.2, (name, took)
            assert took["draws"] > 20, (name, took)


#: Whether the first two paragraphs are the same elements before and after a fourth one arrives.
KEPT = """
(async () => {
  const { Writing } = await import('/js/markdown_view.js')
  const article = document.createElement('article')
  const writing = new Writing(article, { schedule: (turn) => turn(), now: () => 0 })
  writing.append('first\\n\\nsecond\\n\\nthird\\n\\n')
  const [first, second] = article.children
  writing.append('fourth')
  writing.finish()
  return [article.children[0] === first, article.children[1] === second, article.children.length]
})()
"""


async def test_finished_blocks_are_never_rendered_again(chrome: Browser) -> None:
    site = Site()
    site.show("")
    async with opened(chrome, site) as page:
        await page.goto(f"{site.origin}/")
        kept = await page.evaluate(KEPT)
        assert kept == [True, True, 4]
