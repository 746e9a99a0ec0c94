"""The dashboard of mixer servers."""

from panels import Dashboard, Query, Row, Variable, stat, timeseries
from queries import MIX_CALLS, cores, increase, mean, memory, quantile, rate

MIXER = 'job="samix-mixer", instance=~"$instance"'

SERVER = Dashboard(
    uid="samix-mixer",
    title="SAMix: Mixer",
    help="One or several mixer servers: what they do, where time goes, and what they refuse.",
    variables=(Variable("instance", "mixer_build_info"),),
    rows=(
        Row(
            "Now",
            (
                stat("Servers that answer", 'sum(up{job="samix-mixer", instance=~"$instance"})', "none"),
                stat("Mixers ready", f"sum(mixer_model_ready{{{MIXER}}})", "none"),
                stat("Images mixed", f"sum(rate(mixer_images_total{{{MIXER}}}[$__rate_interval]))", "cps"),
                stat(
                    "Answer, p99",
                    quantile(0.99, "", "mixer_request_duration_seconds", f"{MIXER}, {MIX_CALLS}"),
                    "s",
                    limit=0.5,
                ),
                stat("Queue", f"max(instance:mixer_queue:fill_ratio{{{MIXER}}})", "percentunit", limit=0.9),
                stat("Refused", f"max(instance:mixer_refusals:ratio_rate5m{{{MIXER}}})", "percentunit", limit=0.05),
            ),
            height=4,
        ),
        Row(
            "Work",
            (
                timeseries(
                    "Images mixed",
                    Query(rate("model, mode", "mixer_images_total", MIXER), "{{model}} {{mode}}"),
                    unit="cps",
                    is_stacked=True,
                    help="By mixer, and by what was answered: mask logits or mixed images.",
                ),
                timeseries(
                    "Images in a pass",
                    Query(mean("instance", "mixer_batch_size_images", MIXER), "mean {{instance}}"),
                    Query(quantile(0.9, "instance", "mixer_batch_size_images", MIXER), "p90 {{instance}}"),
                    unit="short",
                    help="Near a request's size under load: nothing is grouped, see --batching.max-queue-delay-s.",
                ),
                timeseries(
                    "Calls",
                    Query(rate("method", "mixer_requests_total", MIXER), "{{method}}"),
                    unit="reqps",
                    help="Calls, and batches of streams.",
                ),
            ),
        ),
        Row(
            "Co-training",
            (
                timeseries(
                    "Steps learned",
                    Query(rate("session, outcome", "mixer_online_steps_total", MIXER), "{{session}} {{outcome}}"),
                    unit="cps",
                    help="Partial: some rank sent nothing in time. Skipped: no rank did, for the server was away.",
                ),
                timeseries(
                    "Loss of the mixer",
                    Query(f"mixer_online_loss{{{MIXER}}}", "{{session}} {{part}}"),
                    unit="short",
                ),
                timeseries(
                    "Masks",
                    Query(f"mixer_online_mask_spread_ratio{{{MIXER}}}", "spread {{session}}"),
                    Query(f"mixer_online_lambda_error_ratio{{{MIXER}}}", "lambda error {{session}}"),
                    unit="percentunit",
                    help="A spread below 2 % is a constant blend: the mixer has not begun to learn.",
                ),
            ),
        ),
        Row(
            "Co-training: in step",
            (
                timeseries(
                    "Mean of masks by lambda",
                    Query(
                        f"{rate('lam', 'mixer_online_mask_mean_sum_total', MIXER)} / "
                        f"{rate('lam', 'mixer_online_masks_total', MIXER)}",
                        "lambda {{lam}}+",
                    ),
                    unit="percentunit",
                    ceiling=1,
                    help="Masks that follow lambda lie in their own tenth. All lines together: they ignore it.",
                ),
                timeseries(
                    "Staleness, mean",
                    Query(mean("session", "mixer_online_staleness_steps", MIXER), "mixer {{session}}"),
                    Query(mean("session", "mixer_online_weights_lag_steps", MIXER), "weights {{session}}"),
                    unit="short",
                    help="Steps by which mixer and weights lagged behind the batches they mixed.",
                ),
                timeseries(
                    "Age of weights",
                    Query(f"mixer_weights_age_seconds{{{MIXER}}}", "{{session}}"),
                    Query(rate("session", "mixer_weights_updates_total", MIXER), "updates per second {{session}}"),
                    unit="s",
                    help="Rises where rank 0 sends none: its log says why.",
                ),
                timeseries(
                    "Bytes",
                    Query(rate("kind", "mixer_online_received_bytes_total", MIXER), "{{kind}}"),
                    Query(f"mixer_online_memory_bytes{{{MIXER}}}", "memory held {{instance}}"),
                    unit="bytes",
                ),
            ),
        ),
        Row(
            "Time",
            (
                timeseries(
                    "Answer",
                    Query(quantile(0.5, "method", "mixer_request_duration_seconds", MIXER), "p50 {{method}}"),
                    Query(quantile(0.99, "method", "mixer_request_duration_seconds", MIXER), "p99 {{method}}"),
                    unit="s",
                    limit=0.5,
                    help="From the arrival of a message to its answer. The line is the objective for p99.",
                ),
                timeseries(
                    "Stages, mean",
                    Query(mean("stage", "mixer_stage_duration_seconds", MIXER), "{{stage}}"),
                    unit="s",
                    is_stacked=True,
                    help="Queue far above compute: more is asked for than one server computes.",
                ),
                timeseries(
                    "First answer of a stream, p99",
                    Query(quantile(0.99, "instance", "mixer_stream_first_batch_seconds", MIXER), "{{instance}}"),
                    unit="s",
                ),
            ),
        ),
        Row(
            "Pressure",
            (
                timeseries(
                    "Queue",
                    Query(f"sum by (instance) (mixer_queue_images{{{MIXER}}})", "images {{instance}}"),
                    Query(f"sum by (instance) (mixer_queue_requests{{{MIXER}}})", "requests {{instance}}"),
                    Query(f"sum by (instance) (mixer_queue_limit_images{{{MIXER}}})", "limit {{instance}}"),
                    unit="short",
                ),
                timeseries(
                    "Memory of requests",
                    Query(f"sum by (instance) (mixer_request_memory_bytes{{{MIXER}}})", "held {{instance}}"),
                    Query(f"sum by (instance) (mixer_queue_bytes{{{MIXER}}})", "of these in the queue {{instance}}"),
                    Query(f"sum by (instance) (mixer_request_memory_limit_bytes{{{MIXER}}})", "limit {{instance}}"),
                    unit="bytes",
                ),
                timeseries(
                    "Clients",
                    Query(f"sum by (instance) (mixer_streams_open{{{MIXER}}})", "streams {{instance}}"),
                    Query(f"sum by (instance) (mixer_requests_in_flight{{{MIXER}}})", "in flight {{instance}}"),
                    Query(f"sum by (instance) (mixer_queue_clients{{{MIXER}}})", "clients that wait {{instance}}"),
                    unit="short",
                ),
            ),
        ),
        Row(
            "What went wrong",
            (
                timeseries(
                    "Answers other than OK",
                    Query(rate("method, code", "mixer_requests_total", f'{MIXER}, code!="OK"'), "{{method}} {{code}}"),
                    unit="reqps",
                    help="RESOURCE_EXHAUSTED: refused with a time to come again. INVALID_ARGUMENT: the caller's fault.",
                ),
                timeseries(
                    "Masks that are no numbers",
                    Query(increase("model", "mixer_nonfinite_masks_total", MIXER), "{{model}}"),
                    unit="short",
                    help="Above zero: the mixer is broken.",
                ),
                timeseries(
                    "Distance of masks from lambda, mean",
                    Query(mean("model", "mixer_mask_lambda_error_ratio", MIXER), "{{model}}"),
                    unit="percentunit",
                    help="Of a mask's mean from the share asked for. A jump is another mixer, or other data.",
                ),
            ),
        ),
        Row(
            "Datasets",
            (
                timeseries(
                    "Images sent",
                    Query(rate("dataset", "mixer_dataset_images_total", MIXER), "{{dataset}}"),
                    unit="cps",
                    is_stacked=True,
                ),
                timeseries(
                    "Who waits for whom",
                    Query(
                        rate("dataset, reason", "mixer_dataset_wait_seconds_sum", MIXER), "{{dataset}} for {{reason}}"
                    ),
                    unit="short",
                    help="In consumers. For batch: decoding or mixing is slow. For credit: consumers are.",
                ),
                timeseries(
                    "Consumers, and parts to decode",
                    Query(f"sum by (dataset) (mixer_dataset_subscriptions_open{{{MIXER}}})", "consumers {{dataset}}"),
                    Query(f"sum by (dataset) (mixer_dataset_decode_queue_parts{{{MIXER}}})", "parts {{dataset}}"),
                    unit="short",
                ),
                timeseries(
                    "Samples left out, decoders replaced",
                    Query(
                        increase("dataset", "mixer_dataset_skipped_samples_total", MIXER),
                        "left out {{dataset}}",
                    ),
                    Query(
                        increase("dataset", "mixer_dataset_decoder_restarts_total", MIXER),
                        "replaced {{dataset}}",
                    ),
                    unit="short",
                ),
            ),
        ),
        Row(
            "Machine",
            (
                timeseries(
                    "Network",
                    Query(rate("instance", "mixer_received_bytes_total", MIXER), "in {{instance}}"),
                    Query(rate("instance", "mixer_sent_bytes_total", MIXER), "out {{instance}}"),
                    Query(rate("instance", "mixer_dataset_sent_bytes_total", MIXER), "out, datasets {{instance}}"),
                    unit="Bps",
                ),
                cores(MIXER, "{{instance}} {{worker}}"),
                memory(MIXER, "{{instance}} {{worker}}"),
                timeseries(
                    "Pictures and leases in memory",
                    Query(
                        f"sum by (instance) (mixer_dataset_memory_bytes{{{MIXER}}})", "decoded pictures {{instance}}"
                    ),
                    Query(f"sum by (instance) (mixer_shared_memory_bytes{{{MIXER}}})", "leased {{instance}}"),
                    unit="bytes",
                ),
            ),
        ),
    ),
)
