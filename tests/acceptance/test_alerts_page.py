"""The alerts page with the real metrics service: a silence from a terminal appears on the page, and the page can end it."""

from shared.api import alerts
from tests.acceptance.visitor import administrator
from tests.acceptance.watching import Watch
from tests.people import ApiClient
from tests.stacks import RunningStack


async def test_a_silence_of_the_terminal_comes_to_the_page_and_is_ended_there(
    stack: RunningStack, watch: Watch, api_client: ApiClient
) -> None:
    ada = await administrator(await watch.open(), stack.url("web"), api_client)
    page = ada.page
    await page.click("nav.pages a", "Admin")
    await page.click("nav.tabs a", "Alerts")
    assert await page.path() == "/admin/alerts"
    assert "Unknown" not in await page.text()
    command = ("alerts", "silence", "watchdog", "--for", "1h", "--label", "node=n1", "--why", "the rack moves", "--json")
    made = (await stack.aicli(*command, AICLI_API_KEY=api_client.admin_key)).json()
    # The page updates without a reload.
    await page.until("document.body.innerText.includes('the rack moves')")
    (row,) = await ada.rows(f"tr[data-id='{made['id']}']")
    assert "watchdog" in row
    assert "node=n1" in row
    await page.click(f"tr[data-id='{made['id']}'] button", "End")
    await ada.sees("Silence ended.")
    found = await api_client.mesh.rpc.call(alerts.list_alerts, alerts.ListAlerts(), credential=api_client.admin_key)
    assert made["id"] not in {each.id for each in found.silences}
