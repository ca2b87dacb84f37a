"""Charts in a real page: uPlot under the strict policy and Trusted Types, read by pointer, by keyboard and as a table."""

import asyncio

import pytest

from tests.acceptance.chromium import Browser, Page
from tests.services.web.js import axe
from tests.services.web.js.site import ReceivedRequest, Site, key, opened, wait_for

pytestmark = pytest.mark.asyncio(loop_scope="module")

HEAD = '<link rel="stylesheet" href="/uplot.css"><script defer src="/uplot.js"></script>'
#: The text above the chart, starting with the day.
READING = "document.querySelector('.plot output').textContent"


def table(kind: str, rows: list[tuple[str, str, str]], unit: str = "ms") -> str:
    row = '<tr data-id="{0}"><th scope="row">{0}</th><td>{1}</td><td data-value="{2}">{2} ms</td></tr>'
    cells = "".join(row.format(*each) for each in rows)
    return (
        f'<table data-chart="{kind}"><caption>Tokens by day</caption><thead><tr><th scope="col">Day</th><th scope="col">Tokens</th>'
        f'<th scope="col" data-unit="{unit}">Latency</th></tr></thead><tbody>{cells}</tbody></table>'
    )


ROWS = [("1 Nov", "1,200", "35"), ("2 Nov", "", "40"), ("3 Nov", "900", "45")]
#: Whether the drawing has more than a few pixels in this color.
PIXELS = """
(() => {
  const canvas = document.querySelector('.uplot canvas')
  const copy = new OffscreenCanvas(canvas.width, canvas.height).getContext('2d', { willReadFrequently: true })
  copy.drawImage(canvas, 0, 0)
  const dots = copy.getImageData(0, 0, canvas.width, canvas.height).data
  const [red, green, blue] = COLOUR.split(',').map(Number)
  let count = 0
  for (let at = 0; at < dots.length; at += 4) {
    if (dots[at] === red && dots[at + 1] === green && dots[at + 2] === blue && dots[at + 3] > 200) count += 1
  }
  return count > 20
})()
"""


async def colour(page: Page, name: str) -> str:
    """Return a color of the style sheet as `r,g,b`."""
    script = f"(() => {{ const probe = document.createElement('i'); probe.style.color = 'var({name})'; document.body.append(probe);"
    return str(await page.evaluate(script + " return getComputedStyle(probe).color.match(/\\d+/g).slice(0, 3).join() })()"))


def dots_in(rgb: str) -> str:
    return PIXELS.strip().replace("COLOUR", f"'{rgb}'")


async def drawn_in(page: Page, name: str) -> None:
    await wait_for(page, dots_in(await colour(page, name)))


async def test_table_becomes_a_chart_for_keyboard_and_pointer(chrome: Browser) -> None:
    site = Site()
    for kind, dark in (("bars", False), ("lines", True)):
        site.show(table(kind, ROWS), "chart", head=HEAD)
        # Latency has another unit, so it isn't drawn, but the text above the chart shows it.
        async with opened(chrome, site, dark=dark) as page:
            await page.goto(f"{site.origin}/")
            await wait_for(page, "document.querySelector('.uplot canvas')")
            await wait_for(page, f"{READING} === 'TokensLatency'")
            await drawn_in(page, "--series-1")
            await page.evaluate("document.querySelector('[aria-roledescription=chart]').focus()")
            for name, wanted in (
                ("ArrowRight", "1 Nov Tokens: 1,200Latency: 35 ms"),
                # A day without a value shows none.
                ("ArrowRight", "2 Nov TokensLatency: 40 ms"),
                ("End", "3 Nov Tokens: 900Latency: 45 ms"),
                ("ArrowRight", "3 Nov Tokens: 900Latency: 45 ms"),
                ("ArrowLeft", "2 Nov TokensLatency: 40 ms"),
                ("Home", "1 Nov Tokens: 1,200Latency: 35 ms"),
            ):
                await key(page, name)
                await wait_for(page, f"{READING} === '{wanted}'")
            box = await page.evaluate(
                "(({right, top}) => ({x: right - 20, y: top + 50}))(document.querySelector('.u-over').getBoundingClientRect())"
            )
            await page.send("Input.dispatchMouseEvent", type="mouseMoved", **box)
            await wait_for(page, f"{READING}.startsWith('3 Nov')")
            # The table is still there, collapsed.
            assert await page.evaluate("document.querySelector('details table').rows.length") == 4
            assert [each for each in await axe.violations(page) if each.is_serious] == []


async def test_lines_of_one_unit_are_drawn_together_and_bars_one_by_one(chrome: Browser) -> None:
    site = Site()
    rows = [("1", "10", "20"), ("2", "30", "10"), ("3", "20", "40")]
    for kind, drawn in (("lines", [True, True]), ("bars", [True, False])):
        site.show(table(kind, rows, unit=""), "chart", head=HEAD)
        async with opened(chrome, site) as page:
            await page.goto(f"{site.origin}/")
            await drawn_in(page, "--series-1")
            found = [await page.evaluate(dots_in(await colour(page, name))) for name in ("--series-1", "--series-2")]
            assert found == drawn, kind
            # Each drawn line has a mark next to its name.
            assert await page.evaluate("document.querySelectorAll('.plot output i').length") == sum(drawn)


async def test_chart_follows_its_table_and_the_color_scheme(chrome: Browser) -> None:
    site = Site()
    site.show(f'<section data-live-source="/live">{table("lines", ROWS)}</section>', "chart", "live", head=HEAD)

    async def live(page_request: ReceivedRequest) -> None:
        await page_request.begin()
        await page_request.event({"days": [{"id": "3 Nov", "tokens": "5"}, {"id": "4 Nov", "day": "4 Nov", "tokens": "7"}]})
        await looked.wait()
        await page_request.event({"days": [{"id": "3 Nov", "tokens": "5"}, {"id": "4 Nov", "tokens": "8"}]})
        await page_request.gone()

    looked = asyncio.Event()
    site.answers["/live"] = live
    row = '<template><tr><th scope="row" data-live="day"></th><td data-live="tokens"></td><td></td></tr></template>'
    site.pages["/"] = site.pages["/"].replace("<tbody>", f'<tbody data-live-list="days">{row}')
    site.pages["/"] = site.pages["/"].replace("<td>900</td>", '<td data-live="tokens">900</td>')
    async with opened(chrome, site) as page:
        await page.goto(f"{site.origin}/")
        await wait_for(page, "document.querySelector('.uplot canvas') && document.querySelectorAll('tbody tr').length === 2")
        await page.evaluate("document.querySelector('[aria-roledescription=chart]').focus()")
        await key(page, "End")
        await wait_for(page, f"{READING} === '4 Nov Tokens: 7Latency'")
        # When the selected value changes, the text above the chart updates.
        looked.set()
        await wait_for(page, f"{READING} === '4 Nov Tokens: 8Latency'")
        await key(page, "Home")
        await wait_for(page, f"{READING}.startsWith('3 Nov Tokens: 5')")
        before = await colour(page, "--series-1")
        await page.send("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": "dark"}])
        await wait_for(page, "matchMedia('(prefers-color-scheme: dark)').matches")
        assert await colour(page, "--series-1") != before
        await drawn_in(page, "--series-1")


async def test_times_are_utc_and_an_empty_table_is_drawn_later(chrome: Browser) -> None:
    site = Site()
    hours = [(f"{hour:02}:00", str(hour), "1") for hour in range(24)]
    made = table("lines", hours)
    for hour in range(24):
        made = made.replace(f'<th scope="row">{hour:02}:00', f'<th scope="row" data-value="{1_793_491_200 + hour * 3600}">{hour:02}:00')
    empty = '<table data-chart="bars"><caption>None</caption><thead><tr><th>Day</th><th>n</th></tr></thead><tbody></tbody></table>'
    site.show(made + empty, "chart", head=HEAD)
    async with opened(chrome, site, width=400) as page:
        await page.send("Emulation.setTimezoneOverride", timezoneId="Asia/Tokyo")
        await page.goto(f"{site.origin}/")
        await wait_for(page, "document.querySelector('.uplot canvas')")
        assert await page.evaluate("document.querySelectorAll('.plot')[1].hidden")
        # On a phone the chart is no wider than the page.
        assert await page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        await page.evaluate("document.querySelector('.uplot').parentElement.focus()")
        await key(page, "Home")
        await wait_for(page, f"{READING}.startsWith('00:00')")
        await page.evaluate(
            "(() => { const row = document.querySelectorAll('table')[1].tBodies[0].insertRow();"
            " row.append(document.createElement('th'), document.createElement('td'));"
            " row.cells[0].textContent = 'x'; row.cells[1].textContent = '5' })()"
        )
        await wait_for(page, "document.querySelectorAll('.uplot').length === 2")
        assert await page.evaluate("document.querySelectorAll('.plot')[1].hidden") is False


async def test_without_the_library_the_table_stays(chrome: Browser) -> None:
    site = Site()
    site.show(table("bars", ROWS), "chart")
    async with opened(chrome, site) as page:
        await page.goto(f"{site.origin}/")
        assert await page.evaluate("[document.querySelector('main > table').rows.length, document.querySelectorAll('.plot').length]") == [
            4,
            0,
        ]


#: Records the texts that are drawn on a canvas.
WRITTEN = """
window.written = []
const write = CanvasRenderingContext2D.prototype.fillText
CanvasRenderingContext2D.prototype.fillText = function (text, ...rest) { window.written.push(text); return write.call(this, text, ...rest) }
"""


async def test_scale_of_counts_has_no_fractions(chrome: Browser) -> None:
    site = Site()
    site.show(table("bars", [("1 Nov", "0", "1"), ("2 Nov", "1", "1")]), "chart", head=HEAD)
    async with opened(chrome, site) as page:
        await page.send("Page.addScriptToEvaluateOnNewDocument", source=WRITTEN)
        await page.goto(f"{site.origin}/")
        await wait_for(page, "['0', '1'].every(each => written.includes(each))")
        assert set(await page.evaluate("written")) == {"0", "1", "1 Nov", "2 Nov"}
        # A later value may be a fraction.
        await page.evaluate("written.length = 0; document.querySelector('tbody tr:last-child td').textContent = '0.4'")
        await wait_for(page, "written.includes('0.4')")
        assert "1" not in await page.evaluate("written")


async def test_single_day_is_visible(chrome: Browser) -> None:
    site = Site()
    rows = [(f"day {number}", "900" if number == 80 else "", "") for number in range(90)]
    site.show(table("lines", rows), "chart", head=HEAD)
    async with opened(chrome, site, width=390) as page:
        await page.goto(site.origin)
        await drawn_in(page, "--series-1")


SINCE = 1_795_176_000


def series(*lines: tuple[str, str], unit: str = "share") -> str:
    """Return the table of a history chart: each row is a line with the values of all steps."""
    row = (
        '<tr data-id="{0}" data-value="{1}" data-live-attr="data-value:points"><th scope="row" data-live="label">{0}</th>'
        '<td data-live="latest">x</td></tr>'
    )
    head = f'<th scope="col" data-value="{SINCE}" data-live-attr="data-value:since">Line</th><th scope="col">Latest</th>'
    return (
        '<section data-live-source="/live"><div class="scrolls" tabindex="0" role="region" aria-label="Numbers">'
        f'<table data-chart="series" data-unit="{unit}" data-step="30"><caption>Processors</caption><thead><tr>{head}</tr></thead>'
        f'<tbody data-live-list="cpu"><template>{row.format("", "")}</template>{"".join(row.format(*line) for line in lines)}</tbody>'
        "</table></div></section>"
    )


async def test_history_line_is_read_step_by_step_with_gaps(chrome: Browser) -> None:
    site = Site()
    site.show(series(("rig", ".1,.2,,.4"), ("gateway", ".5,.5,.5,.5")), "chart", head=HEAD)
    async with opened(chrome, site, width=390) as page:
        await page.goto(f"{site.origin}/")
        await drawn_in(page, "--series-2")
        await wait_for(page, f"{READING} === 'riggateway'")
        await page.evaluate("document.querySelector('[aria-roledescription=chart]').focus()")
        for name, wanted in (
            ("Home", "12:00 rig: 10 %gateway: 50 %"),
            ("ArrowRight", "12:00 rig: 20 %gateway: 50 %"),
            ("ArrowRight", "12:01 rig: no datagateway: 50 %"),
            ("End", "12:01 rig: 40 %gateway: 50 %"),
        ):
            await key(page, name)
            await wait_for(page, f"{READING} === '{wanted}'")
        # The table scrolls separately, below the chart.
        assert await page.evaluate("document.querySelector('.plot').closest('.scrolls') === null")
        assert await page.evaluate("document.querySelector('details > .scrolls > table').rows.length") == 3
        assert [each for each in await axe.violations(page) if each.is_serious] == []


async def test_twelve_lines_differ_in_color_and_dash(chrome: Browser) -> None:
    site = Site()
    names = [f"machine {number}" for number in range(12)]
    site.show(series(*((name, f".{number},.{number}") for number, name in enumerate(names))), "chart", head=HEAD)
    async with opened(chrome, site) as page:
        await page.goto(f"{site.origin}/")
        await drawn_in(page, "--series-1")
        look = "(({color, borderTopStyle}) => [color, borderTopStyle].join())(getComputedStyle(each))"
        looks = await page.evaluate(f"[...document.querySelectorAll('.plot output i')].map(each => {look})")
        assert len(set(looks)) == len(looks) == 12


async def test_added_line_is_drawn_and_time_advances(chrome: Browser) -> None:
    site = Site()
    site.show(series(("rig", ".1,.2")), "chart", "live", head=HEAD)

    async def live(page_request: ReceivedRequest) -> None:
        await page_request.begin()
        rows = [{"id": name, "label": name, "points": points, "latest": "x"} for name, points in (("rig", ".1,.9"), ("new", ".3,.4"))]
        await page_request.event({"since": str(SINCE + 600), "cpu": rows})
        await page_request.gone()

    site.answers["/live"] = live
    async with opened(chrome, site) as page:
        await page.goto(f"{site.origin}/")
        await drawn_in(page, "--series-2")
        await page.evaluate("document.querySelector('[aria-roledescription=chart]').focus()")
        await key(page, "End")
        await wait_for(page, f"{READING} === '12:10 rig: 90 %new: 40 %'")


async def test_chart_without_lines_is_hidden_until_one_arrives(chrome: Browser) -> None:
    site = Site()
    site.show(series(), "chart", head=HEAD)
    async with opened(chrome, site) as page:
        await page.goto(f"{site.origin}/")
        await wait_for(page, "document.querySelector('.plot')?.hidden")
