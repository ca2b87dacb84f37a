"""The boards of money and of security."""

from services.metrics.alerting.rules.alert_rule import DashboardName
from tools.boards.panel import WHOLE, Dashboard, Panel, PanelQuery, PanelUnit, lines, stat
from tools.boards.requests import quantile, rate

_FOR_A_REQUEST = (
    'sum(increase(ai_platform_cost_micro_total[1h])) / 1e6 / sum(increase(ai_platform_completed_requests_total{status="success"}[1h]))'
)

LEDGER = Dashboard(
    board=DashboardName.LEDGER,
    title="Ledger and cost",
    help="Revenue, ledger consistency, and rows to be written. `aicli report cost` has exact figures.",
    panels=(
        stat(
            "Drift",
            "Difference in the ledger, in micro-credits; anything but 0 is an error",
            PanelUnit.NUMBER,
            "max(abs(ai_platform_ledger_drift_micro))",
            bad_from=1,
        ),
        stat("Revenue, 24 h", "Credits", PanelUnit.NUMBER, "sum(increase(ai_platform_cost_micro_total[1d])) / 1e6"),
        stat("Cost per request", "Credits, average of the last hour", PanelUnit.NUMBER, _FOR_A_REQUEST),
        stat("Held", "Requests with reserved credits", PanelUnit.NUMBER, "sum(ai_platform_ledger_open_reservations)"),
        lines(
            "Revenue by model",
            "Credits per hour",
            PanelUnit.NUMBER,
            "sum by (model) (rate(ai_platform_cost_micro_total[$__rate_interval])) * 3600 / 1e6",
            stacked=True,
        ),
        lines(
            "Daily revenue",
            "Credits, and the daily average of the 7 days before",
            PanelUnit.NUMBER,
            "sum(increase(ai_platform_cost_micro_total[1d])) / 1e6",
            "last 24 h",
            PanelQuery("sum(increase(ai_platform_cost_micro_total[7d] offset 1d)) / 7 / 1e6", "daily average before"),
        ),
        lines(
            "Reservation time",
            "Time to reserve credits in PostgreSQL",
            PanelUnit.SECONDS,
            quantile(0.5, "ai_platform_ledger_reserve_seconds"),
            "p50",
            PanelQuery(quantile(0.99, "ai_platform_ledger_reserve_seconds"), "p99"),
        ),
        lines(
            "Oldest reservation",
            "Age; far above the longest request means that one is stuck",
            PanelUnit.SECONDS,
            "max by (node) (ai_platform_ledger_oldest_reservation_seconds)",
            bad_from=300,
        ),
        lines(
            "Unwritten usage rows",
            "Waiting for PostgreSQL, in memory and in the journal on disk",
            PanelUnit.NUMBER,
            "sum by (node) (ai_platform_usage_queue_rows)",
            "{{node}} in memory",
            PanelQuery("sum by (node) (ai_platform_settle_journal_rows)", "{{node}} on disk"),
        ),
        lines(
            "New users and keys",
            "Per hour",
            PanelUnit.NUMBER,
            "sum(increase(ai_platform_registrations_total[1h]))",
            "users",
            PanelQuery("sum(increase(ai_platform_keys_created_total[1h]))", "keys"),
        ),
    ),
)

SECURITY = Dashboard(
    board=DashboardName.SECURITY,
    title="Security",
    help="Refused requests, expiring certificates, and the integrity of the audit log.",
    panels=(
        stat("Audit log", "Result of the last verification", PanelUnit.YES_OR_NO, "min(ai_platform_audit_chain_valid)"),
        stat(
            "Next certificate expiry",
            "Of live nodes; renewed when a third of the lifetime is left",
            PanelUnit.SECONDS,
            "min(ai_platform_certificate_seconds_left)",
        ),
        stat(
            "Oldest revocation list",
            "Time since a node last confirmed it with auth",
            PanelUnit.SECONDS,
            "max(ai_platform_revocation_list_age_seconds)",
            bad_from=600,
        ),
        stat(
            "Wrong token counts",
            "Answers in 24 h whose worker reported a wrong number of tokens",
            PanelUnit.NUMBER,
            "sum(increase(ai_platform_wrong_counts_total[1d]))",
            bad_from=1,
        ),
        lines("Rejected credentials", "By reason", PanelUnit.PER_SECOND, rate("ai_platform_auth_failures_total", "reason"), stacked=True),
        lines(
            "Rejected connections",
            "Hyperswarm connections without a certificate of this mesh, by node",
            PanelUnit.PER_SECOND,
            rate("ai_platform_strangers_refused_total", "node"),
        ),
        lines(
            "Denied calls",
            "By service",
            PanelUnit.REQUESTS,
            rate("ai_platform_requests_total", "service", "status", where='{status=~"not_authenticated|not_allowed|wrong_role"}'),
            stacked=True,
        ),
        lines(
            "Duplicate node keys",
            "Two nodes with one key: it was stolen or copied",
            PanelUnit.PER_SECOND,
            rate("ai_platform_contested_keys_total", "node"),
        ),
        Panel(
            title="Logs of auth",
            help="Warnings and errors",
            unit=PanelUnit.TEXT,
            kind="logs",
            width=WHOLE,
            queries=(PanelQuery('{service_name="auth"} | severity_text =~ "warning|error"'),),
        ),
    ),
)
