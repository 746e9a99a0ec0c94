"""The dashboard of everything at a glance."""

from panels import Dashboard, Query, Row, stat, table, timeseries
from queries import MIX_CALLS

FLEET = Dashboard(
    uid="samix-fleet",
    title="SAMix: Fleet",
    help="All mixer servers and training runs at a glance, alerts first.",
    rows=(
        Row(
            "Now",
            (
                stat("Alerts", 'count(ALERTS{alertstate="firing"}) or vector(0)', "none", limit=1),
                stat("Mixer servers down", 'sum(1 - up{job="samix-mixer"})', "none", limit=1),
                stat("Ranks silent", 'sum(1 - up{job="samix-trainer"})', "none", limit=1),
                stat("Runs", "count(count by (run) (trainer_steps_total))", "none"),
                stat("Images trained on", "sum(run:trainer_images:rate5m)", "cps"),
                stat("Images mixed", "sum(instance:mixer_images:rate5m)", "cps"),
            ),
            height=4,
        ),
        Row(
            "Objectives, over the time shown",
            (
                stat(
                    "Batches mixed as asked (99.9 %)",
                    "1 - sum(increase(mixer_client_fallback_total[$__range]))"
                    " / sum(increase(mixer_client_wait_seconds_count[$__range]))",
                    "percentunit",
                ),
                stat(
                    "Time not waited (98 %)",
                    "1 - sum(increase(mixer_client_wait_seconds_sum[$__range]))"
                    " / sum(increase(trainer_step_duration_seconds_sum[$__range]))",
                    "percentunit",
                ),
                stat(
                    "Answers without a fault (99.9 %)",
                    '1 - (sum(increase(mixer_requests_total{code=~"INTERNAL|UNAVAILABLE|DEADLINE_EXCEEDED|DATA_LOSS"}'
                    "[$__range])) or vector(0)) / sum(increase(mixer_requests_total[$__range]))",
                    "percentunit",
                ),
                stat(
                    "Answers within 0.5 s (99 %)",
                    f'sum(increase(mixer_request_duration_seconds_bucket{{{MIX_CALLS}, le="0.5"}}[$__range]))'
                    f" / sum(increase(mixer_request_duration_seconds_count{{{MIX_CALLS}}}[$__range]))",
                    "percentunit",
                ),
            ),
            height=4,
        ),
        Row(
            "Alerts",
            (
                timeseries(
                    "Firing and pending",
                    Query("count by (alertname, alertstate) (ALERTS)", "{{alertname}} {{alertstate}}"),
                    unit="none",
                    help="Each has an entry in docs/operations.md.",
                ),
            ),
            height=6,
        ),
        Row(
            "Mixer servers",
            (
                timeseries(
                    "Images mixed",
                    Query("instance:mixer_images:rate5m", "{{instance}}"),
                    unit="cps",
                    is_stacked=True,
                    help="Replicas should carry about as much.",
                ),
                timeseries(
                    "Queue and memory",
                    Query("instance:mixer_queue:fill_ratio", "queue {{instance}}"),
                    Query("instance:mixer_request_memory:fill_ratio", "memory {{instance}}"),
                    unit="percentunit",
                    limit=0.9,
                    ceiling=1,
                ),
                timeseries(
                    "Answer, p99",
                    Query("instance:mixer_request_duration_seconds:p99_5m", "{{instance}}"),
                    unit="s",
                    limit=0.5,
                ),
                timeseries(
                    "Refused",
                    Query("instance:mixer_refusals:ratio_rate5m", "{{instance}}"),
                    unit="percentunit",
                    limit=0.05,
                ),
            ),
        ),
        Row(
            "Training runs",
            (
                timeseries("Images", Query("run:trainer_images:rate5m", "{{run}}"), unit="cps", is_stacked=True),
                timeseries(
                    "Waited, worst rank",
                    Query("max by (run) (run_rank:mixer_client_wait:share_rate5m)", "{{run}}"),
                    unit="percentunit",
                    limit=0.1,
                ),
                timeseries(
                    "Batches by the fallback",
                    Query("run:mixer_client_fallbacks:ratio_rate5m", "{{run}}"),
                    unit="percentunit",
                    limit=0.0144,
                    help="The line wakes somebody.",
                ),
                timeseries("Time left", Query("max by (run) (trainer_eta_seconds)", "{{run}}"), unit="dtdurations"),
            ),
        ),
        Row(
            "Versions",
            (
                table(
                    "Mixers",
                    "mixer_model_info",
                    "One row for each mixer on each server; replicas must agree on sha256.",
                ),
                table("Programs", "mixer_build_info"),
                timeseries(
                    "Worker processes, and those started again",
                    Query("mixer_workers", "all {{instance}}"),
                    Query("mixer_workers_up", "answering {{instance}}"),
                    Query(
                        "sum by (instance) (increase(mixer_worker_restarts_total[$__rate_interval]))",
                        "again {{instance}}",
                    ),
                    unit="short",
                    help="Of servers with --workers above 1.",
                ),
                timeseries(
                    "Loads of mixers",
                    Query("mixer_model_loads_total", "{{model}} {{outcome}} {{instance}}"),
                    Query("mixer_model_load_duration_seconds", "seconds to read {{model}} {{instance}}"),
                    unit="short",
                ),
            ),
        ),
    ),
)
