"""Money, and who was kept out."""

from services.metrics.alerting.rules.alert_rule import DashboardName
from tools.boards.panel import WHOLE, Dashboard, Panel, PanelQuery, PanelUnit, lines, stat
from tools.boards.requests import quantile, rate

_FOR_A_REQUEST = (
    'sum(increase(ai_platform_cost_micro_total[1h])) / 1e6 / sum(increase(ai_platform_completed_requests_total{status="success"}[1h]))'
)

LEDGER = Dashboard(
    board=DashboardName.LEDGER,
    title="Ledger and cost",
    help="What comes in, whether the books are right, and what waits to be written. `aicli report cost` has the figures to the credit.",
    panels=(
        stat(
            "Drift",
            "Micro-credits by which the books are off; anything but 0 is an error",
            PanelUnit.NUMBER,
            "max(abs(ai_platform_ledger_drift_micro))",
            bad_from=1,
        ),
        stat("Earned in a day", "Credits of the last 24 hours", PanelUnit.NUMBER, "sum(increase(ai_platform_cost_micro_total[1d])) / 1e6"),
        stat(
            "For a request",
            "Credits, on average of the last hour",
            PanelUnit.NUMBER,
            _FOR_A_REQUEST,
        ),
        stat("Held", "Requests that hold credits now", PanelUnit.NUMBER, "sum(ai_platform_ledger_open_reservations)"),
        lines(
            "Earned by model",
            "Credits an hour",
            PanelUnit.NUMBER,
            PanelQuery("sum by (model) (rate(ai_platform_cost_micro_total[$__rate_interval])) * 3600 / 1e6", "{{model}}"),
            stacked=True,
        ),
        lines(
            "Earned in a day, against the week",
            "Credits of the last 24 hours, and of a day on average of the 7 before",
            PanelUnit.NUMBER,
            PanelQuery("sum(increase(ai_platform_cost_micro_total[1d])) / 1e6", "last day"),
            PanelQuery("sum(increase(ai_platform_cost_micro_total[7d] offset 1d)) / 7 / 1e6", "a day of the week before"),
        ),
        lines(
            "To hold credits",
            "How long PostgreSQL takes",
            PanelUnit.SECONDS,
            PanelQuery(quantile(0.5, "ai_platform_ledger_reserve_seconds"), "50 %"),
            PanelQuery(quantile(0.99, "ai_platform_ledger_reserve_seconds"), "99 %"),
        ),
        lines(
            "Oldest reservation",
            "Of a request that runs; far beyond the longest request something is stuck",
            PanelUnit.SECONDS,
            PanelQuery("max by (node) (ai_platform_ledger_oldest_reservation_seconds)", "{{node}}"),
            bad_from=300,
        ),
        lines(
            "Rows that wait for PostgreSQL",
            "In memory and in the journal on disk",
            PanelUnit.NUMBER,
            PanelQuery("sum by (node) (ai_platform_usage_queue_rows)", "{{node}} in memory"),
            PanelQuery("sum by (node) (ai_platform_settle_journal_rows)", "{{node}} on disk"),
        ),
        lines(
            "New users and keys",
            "In an hour",
            PanelUnit.NUMBER,
            PanelQuery("sum(increase(ai_platform_registrations_total[1h]))", "users"),
            PanelQuery("sum(increase(ai_platform_keys_created_total[1h]))", "keys"),
        ),
    ),
)

SECURITY = Dashboard(
    board=DashboardName.SECURITY,
    title="Security",
    help="Who was refused, what is about to end, and whether the record of it all is whole.",
    panels=(
        stat(
            "Audit log",
            "Whether its chains hold as far as they were last verified",
            PanelUnit.YES_OR_NO,
            "min(ai_platform_audit_chain_valid)",
        ),
        stat(
            "Next certificate ends in",
            "Of the live nodes; it is renewed when a third of its life is left",
            PanelUnit.SECONDS,
            "min(ai_platform_certificate_seconds_left)",
        ),
        stat(
            "Oldest revocation list",
            "Since auth last confirmed it to a node",
            PanelUnit.SECONDS,
            "max(ai_platform_revocation_list_age_seconds)",
            bad_from=600,
        ),
        stat(
            "Wrong counts",
            "Answers in the last day whose worker told other counts than came",
            PanelUnit.NUMBER,
            "sum(increase(ai_platform_wrong_counts_total[1d]))",
            bad_from=1,
        ),
        lines(
            "Credentials refused",
            "By reason",
            PanelUnit.PER_SECOND,
            PanelQuery(rate("ai_platform_auth_failures_total", "reason"), "{{reason}}"),
            stacked=True,
        ),
        lines(
            "Strangers kept out",
            "Connections over Hyperswarm without a certificate of this mesh, by node",
            PanelUnit.PER_SECOND,
            PanelQuery(rate("ai_platform_strangers_refused_total", "node"), "{{node}}"),
        ),
        lines(
            "Calls not allowed",
            "By service",
            PanelUnit.REQUESTS,
            PanelQuery(
                rate("ai_platform_requests_total", "service", "status", where='{status=~"not_authenticated|not_allowed|wrong_role"}'),
                "{{service}} {{status}}",
            ),
            stacked=True,
        ),
        lines(
            "Keys that two show",
            "Links of one key that were made anew too often: a stolen key, or one copied",
            PanelUnit.PER_SECOND,
            PanelQuery(rate("ai_platform_contested_keys_total", "node"), "{{node}}"),
        ),
        Panel(
            title="What auth says",
            help="Its warnings and errors",
            unit=PanelUnit.TEXT,
            kind="logs",
            width=WHOLE,
            queries=(PanelQuery('{service_name="auth"} | severity_text =~ "warning|error"'),),
        ),
    ),
)
