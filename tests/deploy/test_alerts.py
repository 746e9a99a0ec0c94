"""Alerts fire when they should, not before, and resolve: promtool plays short series to the rules."""

import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from expressions import RULES, rules_of

MIXER = 'job="samix-mixer", instance="mixer:8002"'
RUN = 'job="samix-trainer", instance="node:8010", run="r50"'
RANK = f'{RUN}, rank="0"'
TINY = f'{MIXER}, model="tiny"'
DATASET = f'{MIXER}, dataset="photos"'
STREAM = f'{MIXER}, method="MixStream"'

UP = {f"up{{{MIXER}}}": "1x300", f"up{{{RUN}}}": "1x300"}
"""Both are well, unless a case says otherwise."""

BURST = "0x10 10+10x19 200x200"
"""A counter at rest until 5 m, rising by ten each half minute until 15 m, at rest again."""
STEADY = "0+30x300"


@dataclass(frozen=True)
class Case:
    """What Prometheus sees, a value each half minute from 0 on, and which alerts are firing when."""

    name: str
    series: Mapping[str, str]
    """Values in promtool's spelling: `a+bxN` is a and N more, each b higher; `_` is none, `stale` the end."""
    firing: Mapping[str, set[str]]
    """By time."""


CASES = [
    Case(
        "server down",
        {f"up{{{MIXER}}}": "1x3 0x5 1x30"},
        {"2m30s": set(), "4m": {"MixerDown"}, "6m": set()},
    ),
    Case(
        "no server known",
        {f"up{{{MIXER}}}": "1x3 stale _x5 1x30"},
        {"2m30s": set(), "4m": {"MixerDown"}, "6m": set()},
    ),
    Case(
        "not ready",
        {f"mixer_model_ready{{{TINY}}}": "0x10 1x30"},
        {"2m": set(), "4m": {"MixerNotReady"}, "6m": set()},
    ),
    Case(
        "worker missing",
        {f"mixer_workers{{{MIXER}}}": "2x40", f"mixer_workers_up{{{MIXER}}}": "2x1 1x8 2x30"},
        {"2m": set(), "4m": {"MixerWorkersMissing"}, "6m": set()},
    ),
    Case(
        "queue full",
        {f"mixer_queue_limit_images{{{MIXER}}}": "4096x40", f"mixer_queue_images{{{MIXER}}}": "0x3 4000x8 0x30"},
        {"2m": set(), "4m": {"MixerQueueFull"}, "8m": set()},
    ),
    Case(
        "one worker's queue full",
        {
            f'mixer_queue_limit_images{{{MIXER}, worker="0"}}': "4096x40",
            f'mixer_queue_limit_images{{{MIXER}, worker="1"}}': "4096x40",
            f'mixer_queue_images{{{MIXER}, worker="0"}}': "0x40",
            f'mixer_queue_images{{{MIXER}, worker="1"}}': "0x3 4000x8 0x30",
        },
        {"2m": set(), "4m": {"MixerQueueFull"}, "8m": set()},
    ),
    Case(
        "memory full",
        {
            f"mixer_request_memory_limit_bytes{{{MIXER}}}": "1000x40",
            f"mixer_request_memory_bytes{{{MIXER}}}": "0x3 950x8 0x30",
        },
        {"2m": set(), "4m": {"MixerMemoryFull"}, "8m": set()},
    ),
    Case(
        "refusals",
        {
            f'mixer_requests_total{{{STREAM}, code="OK"}}': STEADY,
            f'mixer_requests_total{{{STREAM}, code="RESOURCE_EXHAUSTED"}}': BURST,
        },
        {"5m": set(), "14m": {"MixerRefusing"}, "25m": set()},
    ),
    Case(
        "faults of the server",
        {
            f'mixer_requests_total{{{STREAM}, code="OK"}}': STEADY,
            f'mixer_requests_total{{{STREAM}, code="INTERNAL"}}': BURST,
        },
        {"5m": set(), "8m": {"MixerFaultsBurnBudget"}, "25m": set()},
    ),
    Case(
        "faults of callers",
        {
            f'mixer_requests_total{{{STREAM}, code="OK"}}': STEADY,
            f'mixer_requests_total{{{STREAM}, code="INVALID_ARGUMENT"}}': BURST,
        },
        {"8m": set(), "14m": set()},
    ),
    Case(
        "slow answers",
        {
            f'mixer_request_duration_seconds_bucket{{{STREAM}, le="0.5"}}': "0x30 30+30x60",
            f'mixer_request_duration_seconds_bucket{{{STREAM}, le="1.0"}}': "0+30x90",
            f'mixer_request_duration_seconds_bucket{{{STREAM}, le="+Inf"}}': "0+30x90",
        },
        {"5m": set(), "13m": {"MixerSlow"}, "25m": set()},
    ),
    Case(
        "non-finite masks",
        {f"mixer_nonfinite_masks_total{{{TINY}}}": "0x4 3x60"},
        {"2m": set(), "4m": {"MixerNonFiniteMasks"}, "15m": set()},
    ),
    Case(
        "streams stalled",
        {
            f"mixer_streams_open{{{MIXER}}}": "4x60",
            f"mixer_sent_bytes_total{{{STREAM}}}": "0+1000x4 4000x14 5000+1000x40",
            f'mixer_sent_bytes_total{{{MIXER}, method="ListMixers"}}': "0x60",
        },
        {"5m": set(), "8m": {"MixerStreamsStalled"}, "11m": set()},
    ),
    Case(
        "first mixer that cannot be loaded",
        {f'mixer_model_loads_total{{{TINY}, outcome="failed"}}': "_x5 1x60"},
        {"2m": set(), "4m": {"MixerLoadFailed"}, "15m": set()},
    ),
    Case(
        "another mixer that cannot be loaded",
        {f'mixer_model_loads_total{{{TINY}, outcome="failed"}}': "1x40 2x60"},
        {"18m": set(), "22m": {"MixerLoadFailed"}, "33m": set()},
    ),
    Case(
        "certificate expiring",
        {f'mixer_certificate_expiry_timestamp_seconds{{{MIXER}, file="server"}}': "1000000x30 9000000x60"},
        {"8m": set(), "12m": {"CertificateExpiring"}, "20m": set()},
    ),
    Case(
        "new tokens that cannot be used",
        {f'mixer_security_file_stale{{{MIXER}, file="tokens"}}': "0x4 1x20 0x60"},
        {"5m": set(), "9m": {"SecurityFileStale"}, "14m": set()},
    ),
    Case(
        "calls denied",
        {f'mixer_requests_total{{{MIXER}, method="Mix", code="UNAUTHENTICATED"}}': "0x4 30+30x40 1230x60"},
        {"4m": set(), "12m": {"CallsDenied"}, "40m": set()},
    ),
    Case(
        "dataset stalled",
        {
            f"mixer_dataset_subscriptions_open{{{DATASET}}}": "2x80",
            f"mixer_dataset_batches_total{{{DATASET}}}": "0+10x4 40x40 50+10x40",
        },
        {"8m": set(), "15m": {"DatasetStalled"}, "25m": set()},
    ),
    Case(
        "samples skipped",
        {
            f"mixer_dataset_images_total{{{DATASET}}}": "0+1000x200",
            f"mixer_dataset_skipped_samples_total{{{DATASET}}}": "0x10 10+10x40 410x200",
        },
        {"8m": set(), "18m": {"DatasetSamplesSkipped"}, "60m": set()},
    ),
    Case(
        "decoders die",
        {f"mixer_dataset_decoder_restarts_total{{{DATASET}}}": "0x4 1x4 2x4 3x60"},
        {"3m": set(), "9m": {"DatasetDecodersDie"}, "25m": set()},
    ),
    Case(
        "rank silent",
        {f"up{{{RUN}}}": "1x3 0x5 1x30"},
        {"2m30s": set(), "4m": {"RankSilent"}, "6m": set()},
    ),
    Case(
        "rank stalled",
        {
            f"trainer_steps_total{{{RANK}}}": "0+10x10 100x60 110+10x40",
            f"trainer_epoch{{{RANK}}}": "3x120",
            f"trainer_epochs{{{RANK}}}": "100x120",
        },
        {"15m": set(), "25m": {"RankStalled"}, "40m": set()},
    ),
    Case(
        "run that is done keeps its page",
        {
            f"trainer_steps_total{{{RANK}}}": "0+10x10 100x100",
            f"trainer_epoch{{{RANK}}}": "99x10 100x100",
            f"trainer_epochs{{{RANK}}}": "100x120",
        },
        {"25m": set()},
    ),
    Case(
        "mixing does not hide",
        {f"mixer_client_wait_seconds_sum{{{RANK}}}": "0+6x60 360x60"},
        {"5m": set(), "15m": {"WaitShareHigh"}, "40m": set()},
    ),
    Case(
        "data stall",
        {
            f"mixer_client_wait_seconds_sum{{{RANK}}}": "0+6x60 360x60",
            f"trainer_data_wait_seconds_sum{{{RANK}}}": "0+18x60 1080x60",
        },
        {"5m": set(), "15m": {"DataStall", "WaitShareHigh"}, "40m": set()},
    ),
    Case(
        "mixer away",
        {
            f"mixer_client_fallback_total{{{RANK}}}": "0x10 3+3x10 33x300",
            f"mixer_client_wait_seconds_count{{{RANK}}}": STEADY,
        },
        {
            "5m": set(),
            "8m": {"FallbacksBurnFast", "FallbacksBurnSlow"},
            "20m": {"FallbacksBurnSlow"},
            "50m": set(),
        },
    ),
    Case(
        "now and then a fallback",
        {
            f"mixer_client_fallback_total{{{RANK}}}": "0+0.3x60 18x300",
            f"mixer_client_wait_seconds_count{{{RANK}}}": STEADY,
        },
        {"20m": {"FallbacksBurnSlow"}, "62m": set()},
    ),
    Case(
        "fallbacks within the objective",
        {
            f"mixer_client_fallback_total{{{RANK}}}": "0+0.03x300",
            f"mixer_client_wait_seconds_count{{{RANK}}}": STEADY,
        },
        {"20m": set()},
    ),
    Case(
        "run ended early",
        {
            f"up{{{RUN}}}": "1x20 stale",
            f"trainer_epoch{{{RANK}}}": "3x20 stale",
            f"trainer_epochs{{{RANK}}}": "100x20 stale",
        },
        {"9m": set(), "14m": {"RunEnded"}, "30m": set()},
    ),
    Case(
        "run that is done",
        {
            f"up{{{RUN}}}": "1x20 stale",
            f"trainer_epoch{{{RANK}}}": "99x10 100x10 stale",
            f"trainer_epochs{{{RANK}}}": "100x20 stale",
        },
        {"14m": set()},
    ),
]


@pytest.mark.skipif(shutil.which("promtool") is None, reason="needs promtool: apt install prometheus")
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_fires_and_resolves(case: Case, tmp_path: Path):
    """At each time exactly the expected alerts are firing."""
    path = tmp_path / "test.yml"
    path.write_text(yaml.safe_dump(as_unit_test(case)))

    played = subprocess.run(["promtool", "test", "rules", path], capture_output=True, text=True, check=False)

    assert played.returncode == 0, played.stdout + played.stderr


def test_every_alert_is_played():
    """No alert is without a case in which it fires and, later, no more."""
    fired = {alert for case in CASES for firing in case.firing.values() for alert in firing}
    resolved = {
        alert for case in CASES for alert in set().union(*case.firing.values()) - list(case.firing.values())[-1]
    }

    assert fired == resolved == {rule["alert"] for rule in rules_of(RULES / "alerts.yml")}


def as_unit_test(case: Case) -> dict:
    """Spell a case as promtool wants it."""
    expected = [
        {
            "expr": 'count by (alertname) (ALERTS{alertstate="firing"})',
            "eval_time": time,
            "exp_samples": [{"labels": f'{{alertname="{name}"}}', "value": 1} for name in sorted(firing)],
        }
        for time, firing in case.firing.items()
    ]
    return {
        "rule_files": [str(path) for path in sorted(RULES.glob("*.yml"))],
        "evaluation_interval": "15s",
        "tests": [
            {
                "interval": "30s",
                "input_series": [{"series": name, "values": values} for name, values in {**UP, **case.series}.items()],
                "promql_expr_test": expected,
            }
        ],
    }
