// Markdown as models write it: every construct, every trick, and a run time that is linear in the length of the text.

import assert from 'node:assert/strict'
import { test } from 'node:test'
import { parse, parseOpen } from '../../../../services/web/static/js/markdown.js'
import { pairLinks, safeAddress } from '../../../../services/web/static/js/markdown_text.js'

/** Renders a tree in one line: `p(a strong(b))`. */
const inline = (nodes) => nodes.map((node) => words[node.type](node)).join('')
const words = {
  text: (node) => node.text,
  code: (node) => `code<${node.text}>`,
  break: () => '/',
  em: (node) => `em(${inline(node.children)})`,
  strong: (node) => `strong(${inline(node.children)})`,
  strike: (node) => `strike(${inline(node.children)})`,
  link: (node) => `link<${node.href}>(${inline(node.children)})`,
}
const shapes = {
  paragraph: (block) => `p(${inline(block.children)})`,
  heading: (block) => `h${block.level}(${inline(block.children)})`,
  code: (block) => `pre<${block.language}>(${block.text})`,
  rule: () => 'hr',
  quote: (block) => `quote(${tree(block.blocks)})`,
  list: (block) =>
    `${block.ordered ? `ol${block.start}` : 'ul'}${block.tight ? '' : '~'}(${block.items.map((item) => `li(${tree(item)})`).join(' ')})`,
  table: (block) => `table<${block.align}>(${[block.head, ...block.rows].map((row) => row.map(inline).join('|')).join(' ; ')})`,
}
const tree = (blocks) => blocks.map((block) => shapes[block.type](block)).join(' ')

const CASES = [
  ['plain words', 'p(plain words)'],
  ['two\n\nparagraphs', 'p(two) p(paragraphs)'],
  ['a line\nand another', 'p(a line/and another)'],
  ['hard\\\nbreak', 'p(hard/break)'],
  ['windows\r\n\r\nlines', 'p(windows) p(lines)'],
  ['# One\n## Two ##\n###### Six\n####### seven', 'h1(One) h2(Two) h6(Six) p(####### seven)'],
  ['#hashtag', 'p(#hashtag)'],
  ['Title\n===\ntext', 'h1(Title) p(text)'],
  ['Title\n---', 'h2(Title)'],
  ['text\n-', 'p(text/-)'],
  ['---', 'hr'],
  ['* * *\n___', 'hr hr'],
  ['*em* **strong** ***both***', 'p(em(em) strong(strong) em(strong(both)))'],
  ['_em_ __strong__ ~~gone~~', 'p(em(em) strong(strong) strike(gone))'],
  ['snake_case_name and 2 * 3 * 4', 'p(snake_case_name and 2 * 3 * 4)'],
  ['**bold *and em* text**', 'p(strong(bold em(and em) text))'],
  ['**not closed', 'p(**not closed)'],
  ['*a **b* c', 'p(*a *em(b) c)'],
  ['~one tilde~', 'p(~one tilde~)'],
  ['`code` and ``a ` tick``', 'p(code<code> and code<a ` tick>)'],
  ['`not closed', 'p(`not closed)'],
  ['`*no em*`', 'p(code<*no em*>)'],
  ['\\*escaped\\* \\`tick\\` \\[x\\](y)', 'p(*escaped* `tick` [x](y))'],
  ['```python\nprint(1)\n\n# not a heading\n```\nafter', 'pre<python>(print(1)\n\n# not a heading) p(after)'],
  ['```\nnever closed\n', 'pre<>(never closed\n)'],
  ['~~~\n```\n~~~', 'pre<>(```)'],
  ['````\n```\n````', 'pre<>(```)'],
  ['> quoted\n> still\nlazy\n\nafter', 'quote(p(quoted/still/lazy)) p(after)'],
  ['> > deep', 'quote(quote(p(deep)))'],
  ['> # title\n> - item', 'quote(h1(title) ul(li(p(item))))'],
  ['- a\n- b', 'ul(li(p(a)) li(p(b)))'],
  ['* a\n\n* b', 'ul~(li(p(a)) li(p(b)))'],
  ['3. three\n4. four', 'ol3(li(p(three)) li(p(four)))'],
  ['1) one', 'ol1(li(p(one)))'],
  ['- a\n  - b\n    - c\n- d', 'ul(li(p(a) ul(li(p(b) ul(li(p(c)))))) li(p(d)))'],
  ['1. a\n  - two spaces\n   - three\n2. b', 'ol1(li(p(a) ul(li(p(two spaces)) li(p(three)))) li(p(b)))'],
  ['1. a\n\n   para\n\n   ```js\n   x\n   ```\n2. b', 'ol1~(li(p(a) p(para) pre<js>(x)) li(p(b)))'],
  ['- a\nlazy', 'ul(li(p(a/lazy)))'],
  ['- a\n\nafter', 'ul(li(p(a))) p(after)'],
  ['- [ ] open\n- [x] done', 'ul(li(p(☐ open)) li(p(☑ done)))'],
  ['text\n- item', 'p(text) ul(li(p(item)))'],
  ['born in\n1815. Then', 'p(born in/1815. Then)'],
  ['-no space', 'p(-no space)'],
  ['| a | b |\n|---|:-:|\n| 1 | 2 |\n| 3 |', 'table<left,center>(a|b ; 1|2 ; 3|)'],
  ['a | b\n--: | ---\n**1** | `2`', 'table<right,left>(a|b ; strong(1)|code<2>)'],
  ['| a \\| b |\n|---|\n| c |', 'table<left>(a | b ; c)'],
  ['a | b\nno divider', 'p(a | b/no divider)'],
  ['[text](https://example.org/a)', 'p(link<https://example.org/a>(text))'],
  ['[**bold** text](<https://example.org/> "title")', 'p(link<https://example.org/>(strong(bold) text))'],
  ['[a](https://example.org/x_(y))', 'p(link<https://example.org/x_(y)>(a))'],
  ['[*open](https://example.org/) x*', 'p(link<https://example.org/>(*open) x*)'],
  ['[mail](mailto:ann@example.org)', 'p(link<mailto:ann@example.org>(mail))'],
  ['see https://example.org/a?b=c.', 'p(see link<https://example.org/a?b=c>(https://example.org/a?b=c).)'],
  ['(https://example.org/)', 'p((link<https://example.org/>(https://example.org/)))'],
  ['<https://example.org/>', 'p(link<https://example.org/>(https://example.org/))'],
  ['![a cat](https://example.org/cat.png)', 'p(link<https://example.org/cat.png>(a cat))'],
  ['![](https://example.org/cat.png)', 'p(link<https://example.org/cat.png>(https://example.org/cat.png))'],
  ['[![badge](https://a.example/b.png)](https://c.example/)', 'p(link<https://c.example/>(badge))'],
  [
    '[out [in](https://a.example/) side](https://b.example/)',
    'p([out link<https://a.example/>(in) side](link<https://b.example/>(https://b.example/)))',
  ],
  ['[x](javascript:alert(1))', 'p([x](javascript:alert(1)))'],
  ['[x](/relative)', 'p([x](/relative))'],
  ['<b>bold</b> <script>x</script>', 'p(<b>bold</b> <script>x</script>)'],
  ['a<br>b<BR/>c', 'p(a/b/c)'],
  ['<!-- comment -->', 'p(<!-- comment -->)'],
  ['&lt;b&gt; &amp;', 'p(&lt;b&gt; &amp;)'],
  ['', ''],
  ['\n \n\t\n', ''],
  ['a\u0000b', 'p(a\u0000b)'],
]

for (const [text, expected] of CASES) test(`markdown: ${JSON.stringify(text)}`, () => assert.equal(tree(parse(text)), expected))

const UNSAFE = [
  'javascript:alert(1)',
  'JaVaScRiPt:alert(1)',
  ' javascript:alert(1)',
  'java\tscript:alert(1)',
  'java\nscript:alert(1)',
  '\u0001javascript:alert(1)',
  'javascript&colon;alert(1)',
  '&#106;avascript:alert(1)',
  'data:text/html,x',
  'data:image/svg+xml,<svg onload=alert(1)>',
  'vbscript:x',
  'file:///etc/passwd',
  'blob:https://example.org/x',
  'about:blank',
  '//example.org/',
  '/own/page',
  'https:example.org',
  'http:\\\\example.org',
  'https://a\tb.example/',
  'https://',
  'https://user@example.org/',
  'https://bank.example:pass@evil.example/',
  'https://example.org/ x',
  'view-source:https://example.org',
  `https://example.org/${'a'.repeat(3000)}`,
]
for (const address of UNSAFE) test(`no link: ${JSON.stringify(address.slice(0, 50))}`, () => assert.equal(safeAddress(address), null))

test('no tree holds a link that is not http, https or mailto, whatever the text', () => {
  const links = (nodes) => nodes.flatMap((node) => [...(node.href ? [node.href] : []), ...links(node.children ?? [])])
  for (const address of UNSAFE) {
    for (const text of [
      `[x](${address})`,
      `[x](<${address}>)`,
      `![x](${address})`,
      `<${address}>`,
      address,
      `[a [b](${address}) c](${address})`,
    ]) {
      const found = links(parse(text).flatMap((block) => block.children ?? []))
      assert.ok(
        found.every((href) => /^(https?:\/\/[^@]*$|mailto:)/.test(href)),
        `${text} → ${found}`,
      )
    }
  }
})

/** Parses an answer that arrives in pieces, like the page. */
function parseInPieces(pieces) {
  const settled = []
  let tail = ''
  for (const piece of pieces) {
    tail += piece
    const open = parseOpen(tail)
    settled.push(...open.blocks.slice(0, open.settled))
    tail = tail.slice(open.from)
  }
  return [...settled, ...parse(tail)]
}

test('what comes letter by letter ends as what comes at once', () => {
  const whole = CASES.map(([text]) => text).join('\n\n')
  for (const text of [...CASES.map(([each]) => each), whole]) assert.deepEqual(parseInPieces(text), parse(text), text)
})

test('random texts end the same, whichever way they are cut', () => {
  const bits = [
    'a',
    'word ',
    '\n',
    '\n\n',
    '- ',
    '  ',
    '1. ',
    '> ',
    '# ',
    '```',
    '~~~',
    '|',
    '---',
    '**',
    '_',
    '`',
    '[x](',
    'https://e.example/',
    ')',
    '===',
    '\\',
    '    ',
    '\r\n',
    '| a | b |\n|---|---|\n',
    '<br>',
    '!',
  ]
  let seed = 7
  const random = (most) => {
    seed = (seed * 48271) % 2147483647
    return seed % most
  }
  for (let round = 0; round < Number(process.env.ROUNDS ?? 3000); round += 1) {
    const pieces = Array.from({ length: 1 + random(40) }, () => bits[random(bits.length)])
    const text = pieces.join('')
    assert.deepEqual(parseInPieces(text), parse(text), JSON.stringify(text))
    assert.deepEqual(parseInPieces(pieces), parse(text), JSON.stringify(text))
  }
})

const HOSTILE = {
  'open brackets': (n) => '['.repeat(n),
  'brackets both ways': (n) => '['.repeat(n / 2) + ']'.repeat(n / 2),
  'half links': (n) => '[a]('.repeat(n / 4),
  'pictures and links': (n) => '!['.repeat(n / 4) + '[a](https://e.example/)'.repeat(n / 46),
  'links without an address': (n) => '[]('.repeat(n / 3),
  'links and spaces': (n) => `[](${' '.repeat(2200)}`.repeat(n / 2203),
  'links and some spaces': (n) => `[](${' '.repeat(50)}`.repeat(n / 53),
  'addresses and spaces': (n) => `[](a${' '.repeat(1000)}`.repeat(n / 1004),
  'titles and spaces': (n) => `[](a${' '.repeat(700)}"b"${' '.repeat(700)}`.repeat(n / 1407),
  'titles without an end': (n) => `[](a "[](a '[](a (`.repeat(n / 18),
  'bracketed addresses without an end': (n) => '[](<'.repeat(n / 4),
  'parentheses in an address': (n) => `[](${'(a)'.repeat(500)}`.repeat(n / 1503),
  'escapes in an address': (n) => `[](${'\\a'.repeat(500)}`.repeat(n / 1003),
  'nested links': (n) => '[a'.repeat(n / 50) + '](https://e.example/)'.repeat(n / 50),
  stars: (n) => '*'.repeat(n),
  'opening stars': (n) => '*a '.repeat(n / 3),
  'mixed marks': (n) => '*a _b ~~c '.repeat(n / 10),
  'closing marks': (n) => 'a* b_ '.repeat(n / 6),
  'marks that open between codes': (n) => '*a `c` '.repeat(n / 7),
  'backticks of all lengths': (n) => Array.from({ length: Math.sqrt(n) }, (_, index) => '`'.repeat(index + 1)).join(' '),
  backslashes: (n) => '\\'.repeat(n),
  quotes: (n) => '>'.repeat(n),
  'quotes on lines': (n) => '> > > > > > > > > > > > > > x\n'.repeat(n / 30),
  'items in items': (n) => Array.from({ length: Math.sqrt(n) }, (_, index) => `${' '.repeat(index * 2)}- x`).join('\n'),
  items: (n) => '- x\n'.repeat(n / 4),
  'empty items': (n) => '-\n'.repeat(n / 2),
  'table rows': (n) => `| a | b |\n|---|---|\n${'| 1 | 2 |\n'.repeat(n / 10)}`,
  'a wide table': (n) => `${'|a'.repeat(n / 4)}\n${'|-'.repeat(n / 4)}`,
  dividers: (n) => '|---\n'.repeat(n / 5),
  'a divider with spaces': (n) => `a|b\n--|--${' '.repeat(n)}x`,
  'a rule that is none': (n) => `${'- '.repeat(n / 2)}x`,
  'a fence with spaces': (n) => `\`\`\`${' '.repeat(n)}\``,
  'a heading with marks': (n) => `# ${'# '.repeat(n / 2)}x`,
  addresses: (n) => 'https://e.example/) '.repeat(n / 20),
  'an address with dots': (n) => `https://e.example/${'.'.repeat(n)}`,
  tags: (n) => '<a '.repeat(n / 3),
  'blank lines': (n) => '\n'.repeat(n),
  'one line': (n) => 'h'.repeat(n),
}
for (const [name, make] of Object.entries(HOSTILE)) {
  test(`time grows with the text: ${name}`, () => {
    parse(make(10_000))
    const began = performance.now()
    parse(make(200_000))
    const took = performance.now() - began
    // Quadratic time would be a minute; the bound leaves room for a busy machine.
    assert.ok(took < 2500, `${took.toFixed(0)} ms`)
  })
}

/** How many characters are read to find the links of a text; a part of it counts with its length. @param {string} text */
function readsOf(text) {
  let reads = 0
  const counted = new Proxy(Object(text), {
    get(target, key) {
      if (key === 'slice') {
        return (from, to) => {
          reads += to - from
          return text.slice(from, to)
        }
      }
      if (key !== 'length') reads += 1
      return target[key]
    },
  })
  pairLinks(counted, new Map(), new Map())
  return reads
}

for (const [name, make] of Object.entries(HOSTILE)) {
  test(`each character is read a few times to find links: ${name}`, () => {
    const text = make(50_000)
    assert.ok(readsOf(text) < 12 * text.length + 5000, `${readsOf(text)} reads of ${text.length} characters`)
  })
}

test('spaces in a link take no longer than letters', () => {
  const milliseconds = (filler) => {
    const text = `[](${filler.repeat(2200)}`.repeat(90)
    parse(text)
    const before = process.cpuUsage()
    parse(text)
    const { user, system } = process.cpuUsage(before)
    return (user + system) / 1000
  }
  const [spaces, letters] = [milliseconds(' '), milliseconds('a')]
  assert.ok(spaces < 20 * letters + 100, `${spaces} ms of processor time for spaces, ${letters} ms for letters`)
})

test('nesting has a bottom', () => {
  const deepest = (nodes) => 1 + Math.max(0, ...(nodes ?? []).map((node) => deepest(node.children)))
  assert.ok(deepest(parse(`${'*a _b '.repeat(500)}x${' c_ d*'.repeat(500)}`)) < 40)
  const depth = (blocks) => 1 + Math.max(0, ...blocks.flatMap((block) => [block.blocks, ...(block.items ?? [])].filter(Boolean).map(depth)))
  assert.ok(depth(parse(`${'> '.repeat(500)}x`)) < 20)
  assert.ok(depth(parse(`${'- '.repeat(500)}x`)) < 20)
})
