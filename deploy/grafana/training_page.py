"""The dashboard of training runs."""

from panels import Dashboard, Query, Row, Variable, stat, timeseries
from queries import cores, increase, memory, quantile, rate

RUN = 'job="samix-trainer", run=~"$run", rank=~"$rank"'

TRAINING = Dashboard(
    uid="samix-training",
    title="SAMix: Training run",
    help="Runs of the trainer, rank by rank: does it learn, how fast, and what does it wait for?",
    variables=(
        Variable("run", "trainer_steps_total", takes_many=False),
        Variable("rank", 'trainer_steps_total{run=~"$run"}'),
    ),
    rows=(
        Row(
            "Now",
            (
                stat("Time left", f"max(trainer_eta_seconds{{{RUN}}})", "dtdurations"),
                stat("Epochs done", f"max(trainer_epoch{{{RUN}}}) / max(trainer_epochs{{{RUN}}})", "percentunit"),
                stat("Accuracy", f"max(trainer_accuracy_ratio{{{RUN}}})", "percentunit"),
                stat("Images", f"sum(rate(trainer_images_total{{{RUN}}}[$__rate_interval]))", "cps"),
                stat(
                    "Waited, worst rank",
                    f"max(run_rank:mixer_client_wait:share_rate5m{{{RUN}}})",
                    "percentunit",
                    limit=0.02,
                ),
                stat("Fallbacks", f"sum(increase(mixer_client_fallback_total{{{RUN}}}[$__range]))", "short", limit=1),
            ),
            height=4,
        ),
        Row(
            "Learning",
            (
                timeseries("Loss", Query(f"trainer_loss{{{RUN}}}", "rank {{rank}}"), unit="short"),
                timeseries(
                    "Accuracy",
                    Query(f"max(trainer_accuracy_ratio{{{RUN}}})", "top-1"),
                    unit="percentunit",
                    ceiling=1,
                    help="Of the last evaluation.",
                ),
                timeseries("Learning rate", Query(f"max(trainer_learning_rate{{{RUN}}})", "rate"), unit="sci"),
            ),
        ),
        Row(
            "Speed",
            (
                timeseries(
                    "Images of each rank",
                    Query(rate("rank", "trainer_images_total", RUN), "rank {{rank}}"),
                    unit="cps",
                    is_stacked=True,
                    help="Ranks step together: one that is slow makes all of them slow.",
                ),
                timeseries(
                    "Step",
                    Query(quantile(0.5, "rank", "trainer_step_duration_seconds", RUN), "p50 rank {{rank}}"),
                    Query(quantile(0.99, "rank", "trainer_step_duration_seconds", RUN), "p99 rank {{rank}}"),
                    unit="s",
                ),
                timeseries("Time left", Query(f"max(trainer_eta_seconds{{{RUN}}})", "run"), unit="dtdurations"),
            ),
        ),
        Row(
            "Waiting",
            (
                timeseries(
                    "Share of time that steps waited for their mixed batch",
                    Query(rate("rank", "mixer_client_wait_seconds_sum", RUN), "rank {{rank}}"),
                    unit="percentunit",
                    limit=0.02,
                    help="The one number that tells whether mixing hides behind the step. The line is the objective.",
                ),
                timeseries(
                    "Data stall",
                    Query(rate("rank", "trainer_data_wait_seconds_sum", RUN), "rank {{rank}}"),
                    unit="percentunit",
                    help="Share of time in which the loader had no batch ready. High beside a high share of waiting: "
                    "data is slow. Low beside it: the mixer is.",
                ),
                timeseries(
                    "Mix, from request to answer",
                    Query(quantile(0.5, "rank", "mixer_client_request_duration_seconds", RUN), "p50 rank {{rank}}"),
                    Query(quantile(0.99, "rank", "mixer_client_request_duration_seconds", RUN), "p99 rank {{rank}}"),
                    unit="s",
                    help="It hides as long as it is below mixing.depth steps.",
                ),
            ),
        ),
        Row(
            "What went wrong",
            (
                timeseries(
                    "Batches mixed by the fallback",
                    Query(rate("rank", "mixer_client_fallback_total", RUN), "rank {{rank}}"),
                    unit="cps",
                    help="Paid from mixing.failure-budget; a rank that has spent it ends the run.",
                ),
                timeseries(
                    "Retries and hedges",
                    Query(rate("reason", "mixer_client_retries_total", RUN), "{{reason}}"),
                    Query(f"sum(rate(mixer_client_hedges_total{{{RUN}}}[$__rate_interval]))", "hedges"),
                    unit="cps",
                ),
                timeseries(
                    "Samples that could not be read",
                    Query(increase("rank", "trainer_skipped_samples_total", RUN), "rank {{rank}}"),
                    unit="short",
                ),
            ),
        ),
        Row(
            "Mixer in training on a server",
            (
                timeseries(
                    "Weights sent",
                    Query(rate("rank", "mixer_client_weights_sent_total", RUN), "sent"),
                    Query(rate("rank", "mixer_client_weights_failed_total", RUN), "failed"),
                    unit="cps",
                    help="Policy remote-online: rank 0 sends them every few steps.",
                ),
                timeseries(
                    "Time to send weights, p99",
                    Query(quantile(0.99, "rank", "mixer_client_weights_duration_seconds", RUN), "rank {{rank}}"),
                    unit="s",
                    help="Beside the training: it matters where it exceeds the steps between two sets.",
                ),
                timeseries(
                    "Sessions joined again, and steps lost with a server",
                    Query(increase("rank", "mixer_client_session_rejoins_total", RUN), "joined again, rank {{rank}}"),
                    Query(increase("rank", "mixer_client_session_lost_steps_total", RUN), "steps lost, rank {{rank}}"),
                    unit="short",
                    help="At most the steps since the session's checkpoint are lost.",
                ),
            ),
        ),
        Row(
            "Machine",
            (
                timeseries(
                    "Network",
                    Query(f"sum(rate(mixer_client_sent_bytes_total{{{RUN}}}[$__rate_interval]))", "out"),
                    Query(f"sum(rate(mixer_client_received_bytes_total{{{RUN}}}[$__rate_interval]))", "in"),
                    unit="Bps",
                ),
                timeseries(
                    "Bytes under way", Query(f"mixer_client_in_flight_bytes{{{RUN}}}", "rank {{rank}}"), unit="bytes"
                ),
                cores('job="samix-trainer", run=~"$run"', "{{instance}}"),
                memory('job="samix-trainer", run=~"$run"', "{{instance}}"),
                timeseries(
                    "Checkpoints",
                    Query(f"max(trainer_checkpoint_seconds{{{RUN}}})", "time of the last"),
                    unit="s",
                    help="The main rank writes them.",
                ),
            ),
        ),
    ),
)
