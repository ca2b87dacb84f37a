"""Models, workers, GPUs; and the mesh between the machines."""

from services.metrics.alerting.rules.alert_rule import DashboardName
from tools.boards.panel import HALF, THIRD, WHOLE, Dashboard, PanelQuery, PanelUnit, lines, stat
from tools.boards.requests import quantile, rate

_MEMORY_TAKEN = "max by (service, node) (ai_platform_host_memory_used_bytes) / max by (service, node) (ai_platform_host_memory_total_bytes)"
_ON_WORKERS = '{service="inference"}'

WORKERS = Dashboard(
    board=DashboardName.WORKERS,
    title="Models and workers",
    help="How fast each model is, how full each worker, and how the machines do.",
    panels=(
        stat("Models that are up", "Engines that run, over all workers", PanelUnit.NUMBER, "sum(ai_platform_worker_up)"),
        stat(
            "Engines that are not",
            "Loading, failed, or restarting",
            PanelUnit.NUMBER,
            "count(ai_platform_worker_up == 0) or vector(0)",
            bad_from=1,
        ),
        stat("Free places", "Answers that could begin at once", PanelUnit.NUMBER, 'sum(ai_platform_worker_slots{state="free"})'),
        stat("Engine restarts", "In the last hour", PanelUnit.NUMBER, "sum(increase(ai_platform_engine_restarts_total[1h]))", bad_from=1),
        lines(
            "Workers by model",
            "That could serve it at that moment; at 0 its requests are refused",
            PanelUnit.NUMBER,
            PanelQuery('max by (model) (ai_platform_model_workers{service="gateway"})', "{{model}}"),
            width=WHOLE,
        ),
        lines(
            "First token by model, 95 %",
            "At the worker: without the wait at the gateway",
            PanelUnit.SECONDS,
            PanelQuery(quantile(0.95, "gen_ai_server_time_to_first_token_seconds", "gen_ai_request_model"), "{{gen_ai_request_model}}"),
            exemplars=True,
        ),
        lines(
            "Tokens by model",
            "Written in a second",
            PanelUnit.PER_SECOND,
            PanelQuery(rate("ai_platform_tokens_total", "model", where='{service="inference", type="output"}'), "{{model}}"),
            stacked=True,
        ),
        lines(
            "Time for a token, 95 %",
            "By model",
            PanelUnit.SECONDS,
            PanelQuery(quantile(0.95, "gen_ai_server_time_per_output_token_seconds", "gen_ai_request_model"), "{{gen_ai_request_model}}"),
        ),
        lines(
            "Errors by model",
            "Of the workers",
            PanelUnit.REQUESTS,
            PanelQuery(
                rate("gen_ai_server_request_duration_seconds_count", "gen_ai_request_model", "error_type", where='{error_type!=""}'),
                "{{gen_ai_request_model}} {{error_type}}",
            ),
        ),
        lines(
            "Places taken",
            "Of each worker and model, the share of places that are busy",
            PanelUnit.SHARE,
            PanelQuery(
                'sum by (node, model) (ai_platform_worker_slots{state="busy"}) / sum by (node, model) (ai_platform_worker_slots)',
                "{{node}} {{model}}",
            ),
            bad_from=1,
        ),
        lines(
            "Engine's speed",
            "Tokens a second while it works",
            PanelUnit.PER_SECOND,
            PanelQuery("sum by (node, model) (ai_platform_engine_tokens_per_second)", "{{node}} {{model}}"),
        ),
        lines(
            "GPU",
            "Share of the time in which it computes",
            PanelUnit.SHARE,
            PanelQuery("max by (node, gpu) (ai_platform_gpu_usage_ratio)", "{{node}} {{gpu}}"),
            bad_from=0.9,
        ),
        lines(
            "GPU memory",
            "Taken, of what there is",
            PanelUnit.SHARE,
            PanelQuery(
                "max by (node, gpu) (ai_platform_gpu_memory_used_bytes) / max by (node, gpu) (ai_platform_gpu_memory_total_bytes)",
                "{{node}} {{gpu}}",
            ),
        ),
        lines(
            "GPU power",
            "What it draws",
            PanelUnit.WATTS,
            PanelQuery("max by (node, gpu) (ai_platform_gpu_power_watts)", "{{node}} {{gpu}}"),
        ),
        lines(
            "GPU temperature",
            "How hot it is",
            PanelUnit.CELSIUS,
            PanelQuery("max by (node, gpu) (ai_platform_gpu_temperature_celsius)", "{{node}} {{gpu}}"),
            bad_from=85,
        ),
        lines(
            "Processors",
            "Share that is busy, of the machine of each node",
            PanelUnit.SHARE,
            PanelQuery("max by (service, node) (ai_platform_host_cpu_usage_ratio)", "{{service}} {{node}}"),
            bad_from=0.8,
        ),
        lines(
            "Memory",
            "Taken, of the machine of each node",
            PanelUnit.SHARE,
            PanelQuery(
                _MEMORY_TAKEN,
                "{{service}} {{node}}",
            ),
            bad_from=0.9,
        ),
        lines(
            "Disk",
            "Free, of the disk with the node's files",
            PanelUnit.SHARE,
            PanelQuery(
                "min by (service, node) (ai_platform_host_disk_free_bytes) / min by (service, node) (ai_platform_host_disk_total_bytes)",
                "{{service}} {{node}}",
            ),
        ),
        lines(
            "Network",
            "Received and sent by the machine of each worker",
            PanelUnit.BYTES_PER_SECOND,
            PanelQuery(rate("ai_platform_host_network_received_bytes_total", "node", where=_ON_WORKERS), "{{node}} in"),
            PanelQuery(rate("ai_platform_host_network_sent_bytes_total", "node", where=_ON_WORKERS), "{{node}} out"),
        ),
    ),
)

MESH = Dashboard(
    board=DashboardName.MESH,
    title="Mesh",
    help="Who is there, by which way, how far, and what was lost between.",
    panels=(
        stat("Nodes", "That live", PanelUnit.NUMBER, "sum(ai_platform_node_up)"),
        stat(
            "Nodes that went",
            "In the last hour, and are not back",
            PanelUnit.NUMBER,
            "count(ai_platform_node_up == 0) or vector(0)",
            bad_from=1,
        ),
        stat(
            "NATS lost",
            "Connections made again in the last hour",
            PanelUnit.NUMBER,
            "sum(increase(ai_platform_nats_reconnects_total[1h]))",
            bad_from=3,
        ),
        stat(
            "Through NATs",
            "Of the links over Hyperswarm, the share that needs no relay",
            PanelUnit.SHARE,
            'sum(ai_platform_links_by_path{path=~"direct|punched"}) / sum(ai_platform_links_by_path{path=~"direct|punched|relayed"})',
        ),
        lines(
            "Links by path",
            "Over all nodes",
            PanelUnit.NUMBER,
            PanelQuery("sum by (path) (ai_platform_links_by_path)", "{{path}}"),
            stacked=True,
            width=THIRD,
        ),
        lines(
            "Round trips by path",
            "The middle and the longest",
            PanelUnit.SECONDS,
            PanelQuery("quantile by (path) (0.5, ai_platform_peer_rtt_seconds)", "{{path}} middle"),
            PanelQuery("max by (path) (ai_platform_peer_rtt_seconds)", "{{path}} longest"),
            width=THIRD,
        ),
        lines(
            "Servers that are reached",
            "1 while a service reaches it",
            PanelUnit.NUMBER,
            PanelQuery("max by (server) (ai_platform_server_up)", "{{server}}"),
            width=THIRD,
        ),
        lines(
            "Nodes by service",
            "That live",
            PanelUnit.NUMBER,
            PanelQuery("sum by (service) (ai_platform_node_up)", "{{service}}"),
            width=THIRD,
        ),
        lines(
            "Nodes that did not answer",
            "A collection of metrics, by code",
            PanelUnit.PER_SECOND,
            PanelQuery(rate("ai_platform_scrape_failures_total", "reason"), "{{reason}}"),
            width=THIRD,
        ),
        lines(
            "Sidecars that died",
            "Hyperswarm's, by node",
            PanelUnit.PER_SECOND,
            PanelQuery(rate("ai_platform_sidecar_restarts_total", "node"), "{{node}}"),
            width=THIRD,
        ),
        lines(
            "Lost on the way to storage",
            "Spans and lines of logs",
            PanelUnit.PER_SECOND,
            PanelQuery(rate("ai_platform_spans_lost_total", "reason"), "spans {{reason}}"),
            PanelQuery(rate("ai_platform_log_lines_lost_total", "reason"), "lines {{reason}}"),
            width=HALF,
        ),
        lines(
            "Events that were not counted",
            "They came faster than they were read",
            PanelUnit.PER_SECOND,
            PanelQuery(rate("ai_platform_events_dropped_total", "service"), "{{service}}"),
            width=HALF,
        ),
    ),
)
