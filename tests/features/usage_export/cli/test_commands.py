"""`aicli admin usage-export`."""

from datetime import UTC, datetime
from uuid import UUID

import pytest

from features.usage_export.contract import AccountTotal, SinkExcess, UsageExportState, UsageSink, read_usage_export
from shared.types import MicroCredits, TenantId
from tests.cli.fake_mesh import Shell

NOON = datetime(2026, 1, 2, 12, tzinfo=UTC)
ANN = TenantId(UUID(int=7))
OF_ANN = AccountTotal(
    events=7, tokens=700, uncovered_tokens=100, cost_micro=MicroCredits(2_000_000), owner=ANN, since=NOON, acknowledged_at=NOON
)
EXCESS = SinkExcess(events=12, tokens=1200, uncovered_tokens=200, cost_micro=MicroCredits(2_500_000), found_at=NOON, accounts=(OF_ANN,))


@pytest.mark.parametrize(
    ("sinks", "lines", "exit_code"),
    [
        pytest.param(
            (),
            ["Usage isn't exported. Set USAGE_EXPORT_URL, USAGE_EXPORT_FILE or USAGE_EXPORT_STRIPE_METER of the gateways."],
            0,
            id="without an export",
        ),
        pytest.param(
            (UsageSink("file", NOON, 0, 0.0, sent_at=NOON, compared_at=NOON),),
            [
                "file: up to date; last sent 2026-01-02",
                "  difference from the ledger, yesterday and today: 0 tokens and 0 micro-credits (compared 2026-01-02",
            ],
            0,
            id="up to date",
        ),
        pytest.param(
            (UsageSink("cloudevents", NOON, 1500, 7200.0, None, "returned 503", NOON, NOON, 12, MicroCredits(3400)),),
            [
                "cloudevents: 1,500 waiting, 2 h behind; last sent",
                "  difference from the ledger, yesterday and today: 12 tokens and 3,400 micro-credits (compared 2026-01-02",
                "  error: returned 503",
                "  the sink may have the next events since 2026-01-02",
            ],
            1,
            id="behind, in doubt, and different",
        ),
        pytest.param(
            (UsageSink("file", NOON, 0, 0.0, excess=EXCESS),),
            [
                "file: up to date",
                "  not compared",
                "  2.5 credits and 1,200 tokens (200 not covered by plans) in 12 events more at the receiver since the restore of 2026",
                f"    {ANN}: 2 credits and 700 tokens (100 not covered by plans) in 7 events of 2026-01-02, acknowledged until",
            ],
            1,
            id="more than a restored database",
        ),
        pytest.param(
            (UsageSink("file", NOON, 0, 0.0),), ["file: up to date; last sent", "  not compared with the ledger yet"], 0, id="new"
        ),
    ],
)
def test_status(shell: Shell, sinks: tuple[UsageSink, ...], lines: list[str], exit_code: int) -> None:
    shell.mesh.answer(read_usage_export, UsageExportState(sinks))
    result = shell("admin", "usage-export", "status")
    shown = result.stdout.splitlines()
    assert all(line.startswith(start) for line, start in zip(shown, lines, strict=True)), shown
    assert result.exit_code == exit_code
