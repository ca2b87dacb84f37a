"""The boards of models, workers and GPUs, and of the mesh."""

from services.metrics.alerting.rules.alert_rule import DashboardName
from tools.boards.panel import HALF, THIRD, WHOLE, Dashboard, PanelQuery, PanelUnit, lines, stat
from tools.boards.requests import quantile, rate

_MEMORY_TAKEN = "max by (service, node) (ai_platform_host_memory_used_bytes) / max by (service, node) (ai_platform_host_memory_total_bytes)"
_ON_WORKERS = '{service="inference"}'

WORKERS = Dashboard(
    board=DashboardName.WORKERS,
    title="Models and workers",
    help="Speed of models, load of workers, and health of machines.",
    panels=(
        stat("Engines up", "Running engines on all workers", PanelUnit.NUMBER, "sum(ai_platform_worker_up)"),
        stat(
            "Engines down", "Loading, failed, or restarting", PanelUnit.NUMBER, "count(ai_platform_worker_up == 0) or vector(0)", bad_from=1
        ),
        stat("Free slots", "Requests that could start now", PanelUnit.NUMBER, 'sum(ai_platform_worker_slots{state="free"})'),
        stat("Engine restarts", "In the last hour", PanelUnit.NUMBER, "sum(increase(ai_platform_engine_restarts_total[1h]))", bad_from=1),
        lines(
            "Workers by model",
            "Workers available for each model; at 0 its requests are refused",
            PanelUnit.NUMBER,
            'max by (model) (ai_platform_model_workers{service="gateway"})',
            width=WHOLE,
        ),
        lines(
            "Time to first token by model, p95",
            "At the worker, without queueing at the gateway",
            PanelUnit.SECONDS,
            quantile(0.95, "gen_ai_server_time_to_first_token_seconds", "gen_ai_request_model"),
            exemplars=True,
        ),
        lines(
            "Tokens by model",
            "Output tokens per second",
            PanelUnit.PER_SECOND,
            rate("ai_platform_tokens_total", "model", where='{service="inference", type="output"}'),
            stacked=True,
        ),
        lines(
            "Time per token, p95",
            "By model",
            PanelUnit.SECONDS,
            quantile(0.95, "gen_ai_server_time_per_output_token_seconds", "gen_ai_request_model"),
        ),
        lines(
            "Errors by model",
            "Failed requests at the workers",
            PanelUnit.REQUESTS,
            rate("gen_ai_server_request_duration_seconds_count", "gen_ai_request_model", "error_type", where='{error_type!=""}'),
        ),
        lines(
            "Slot usage",
            "Share of busy slots, by worker and model",
            PanelUnit.SHARE,
            'sum by (node, model) (ai_platform_worker_slots{state="busy"}) / sum by (node, model) (ai_platform_worker_slots)',
            bad_from=1,
        ),
        lines(
            "Engine speed",
            "Tokens per second while generating",
            PanelUnit.PER_SECOND,
            "sum by (node, model) (ai_platform_engine_tokens_per_second)",
        ),
        lines(
            "Model CPU",
            "Processors that the engines of each model use",
            PanelUnit.NUMBER,
            "sum by (node, model) (rate(ai_platform_model_cpu_seconds[$__rate_interval]))",
        ),
        lines(
            "Model memory",
            "RAM that the engines use, and GPU memory as the worker planned it",
            PanelUnit.BYTES,
            "sum by (node, model) (ai_platform_model_memory_bytes)",
            "{{node}} {{model}} RAM",
            PanelQuery("sum by (node, model) (ai_platform_model_vram_bytes)", "{{node}} {{model}} GPU"),
        ),
        lines(
            "Prompt cache",
            "RAM of prompts that have lost their slots",
            PanelUnit.BYTES,
            "sum by (node, model) (ai_platform_prompt_cache_bytes)",
        ),
        lines(
            "Prompt cache hits",
            "Prompts that were taken back from RAM",
            PanelUnit.PER_SECOND,
            "sum by (node, model) (rate(ai_platform_prompt_cache_hits[$__rate_interval]))",
        ),
        lines(
            "Answers delivered as text",
            "Answers that the model's chat template doesn't describe",
            PanelUnit.PER_SECOND,
            rate("ai_platform_answer_parse_failures_total", "node", "model"),
        ),
        lines("GPU", "Share of time the GPU is busy", PanelUnit.SHARE, "max by (node, gpu) (ai_platform_gpu_usage_ratio)", bad_from=0.9),
        lines(
            "GPU memory",
            "Share of memory in use",
            PanelUnit.SHARE,
            "max by (node, gpu) (ai_platform_gpu_memory_used_bytes) / max by (node, gpu) (ai_platform_gpu_memory_total_bytes)",
        ),
        lines("GPU power", "Power draw", PanelUnit.WATTS, "max by (node, gpu) (ai_platform_gpu_power_watts)"),
        lines("GPU temperature", "Temperature", PanelUnit.CELSIUS, "max by (node, gpu) (ai_platform_gpu_temperature_celsius)", bad_from=85),
        lines(
            "CPU",
            "CPU load of each node's machine",
            PanelUnit.SHARE,
            "max by (service, node) (ai_platform_host_cpu_usage_ratio)",
            bad_from=0.8,
        ),
        lines("Memory", "Memory in use on each node's machine", PanelUnit.SHARE, _MEMORY_TAKEN, bad_from=0.9),
        lines(
            "Disk",
            "Free space on the disk with the node's files",
            PanelUnit.SHARE,
            "min by (service, node) (ai_platform_host_disk_free_bytes) / min by (service, node) (ai_platform_host_disk_total_bytes)",
        ),
        lines(
            "Network",
            "Traffic of each worker's machine",
            PanelUnit.BYTES_PER_SECOND,
            rate("ai_platform_host_network_received_bytes_total", "node", where=_ON_WORKERS),
            "{{node}} in",
            PanelQuery(rate("ai_platform_host_network_sent_bytes_total", "node", where=_ON_WORKERS), "{{node}} out"),
        ),
    ),
)

MESH = Dashboard(
    board=DashboardName.MESH,
    title="Mesh",
    help="Nodes, their connections and latency, the database, and lost data.",
    panels=(
        stat("Nodes", "Live nodes", PanelUnit.NUMBER, "sum(ai_platform_node_up)"),
        stat(
            "Missing nodes",
            "Gone in the last hour and not back",
            PanelUnit.NUMBER,
            "count(ai_platform_node_up == 0) or vector(0)",
            bad_from=1,
        ),
        stat("NATS reconnects", "In the last hour", PanelUnit.NUMBER, "sum(increase(ai_platform_nats_reconnects_total[1h]))", bad_from=3),
        stat(
            "NAT traversal",
            "Share of Hyperswarm links that need no relay",
            PanelUnit.SHARE,
            'sum(ai_platform_links_by_path{path=~"direct|punched"}) / sum(ai_platform_links_by_path{path=~"direct|punched|relayed"})',
        ),
        lines(
            "Links by path", "Links of all nodes", PanelUnit.NUMBER, "sum by (path) (ai_platform_links_by_path)", stacked=True, width=THIRD
        ),
        lines(
            "Round-trip time by path",
            "Median and maximum",
            PanelUnit.SECONDS,
            "quantile by (path) (0.5, ai_platform_peer_rtt_seconds)",
            "{{path}} median",
            PanelQuery("max by (path) (ai_platform_peer_rtt_seconds)", "{{path}} maximum"),
            width=THIRD,
        ),
        lines(
            "Reachable servers",
            "1 while a service can reach the server",
            PanelUnit.NUMBER,
            "max by (server) (ai_platform_server_up)",
            width=THIRD,
        ),
        lines("Nodes by service", "Live nodes", PanelUnit.NUMBER, "sum by (service) (ai_platform_node_up)", width=THIRD),
        lines(
            "Scrape failures",
            "Nodes that did not answer, by reason",
            PanelUnit.PER_SECOND,
            rate("ai_platform_scrape_failures_total", "reason"),
            width=THIRD,
        ),
        lines(
            "Sidecar restarts",
            "Of Hyperswarm, by node",
            PanelUnit.PER_SECOND,
            rate("ai_platform_sidecar_restarts_total", "node"),
            width=THIRD,
        ),
        lines(
            "Database latency, p95",
            "Duration of a statement, by service",
            PanelUnit.SECONDS,
            quantile(0.95, "ai_platform_database_query_seconds", "service"),
            width=THIRD,
        ),
        lines(
            "Database connections",
            "Share of each node's pool (DATABASE_POOL) in use",
            PanelUnit.SHARE,
            'sum by (service, node) (ai_platform_database_connections{state="used"})'
            ' / sum by (service, node) (ai_platform_database_connections{state="most"})',
            bad_from=1,
            width=THIRD,
        ),
        lines(
            "Database size",
            "Tables and indexes on disk, by schema",
            PanelUnit.BYTES,
            "max by (schema) (ai_platform_database_bytes)",
            stacked=True,
            width=THIRD,
        ),
        lines(
            "Lost telemetry",
            "Spans and log lines that did not reach storage",
            PanelUnit.PER_SECOND,
            rate("ai_platform_spans_lost_total", "reason"),
            "spans {{reason}}",
            PanelQuery(rate("ai_platform_log_lines_lost_total", "reason"), "log lines {{reason}}"),
            width=HALF,
        ),
        lines(
            "Dropped events",
            "Events that arrived faster than they were processed",
            PanelUnit.PER_SECOND,
            rate("ai_platform_events_dropped_total", "service"),
            width=HALF,
        ),
    ),
)
