"""A real Prometheus finds runs by the folder they share."""

import shutil
from contextlib import ExitStack, closing
from pathlib import Path

import pytest
from prometheus_server import Prometheus, running_prometheus
from serving import wait_until
from training import ALONE

from services.metrics import serve_metrics
from trainer.discovery import announce_pages
from trainer.metrics import MetricsConfig, TrainerMetrics

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("prometheus") is None, reason="needs Prometheus: apt install prometheus"),
]


def start_run(folder: Path, name: str, run: ExitStack) -> None:
    """Have a page, and a list of it in the run's folder and in the shared one, until `run` is closed."""
    out = folder / "runs" / name
    out.mkdir(parents=True)
    config = MetricsConfig(targets_folder=folder / "runs/targets")
    page = run.enter_context(closing(serve_metrics(TrainerMetrics(0).registry, "127.0.0.1", 0)))
    run.enter_context(announce_pages(out, name, config, page.port, ALONE))


def runs(prometheus: Prometheus) -> dict[str, float]:
    """Say how many pages of each run are up."""
    series = prometheus.ask('sum by (run) (up{job="samix-trainer"} == 1)')
    return {one["metric"]["run"]: float(one["value"][1]) for one in series}


def test_runs_are_found_by_the_shared_folder(tmp_path: Path):
    """Each run is one target, also where its own folder is watched as well; it goes when the run ends."""
    with running_prometheus(tmp_path, [], is_hasty=True) as prometheus, ExitStack() as first, ExitStack() as second:
        start_run(tmp_path, "train", first)
        start_run(tmp_path, "r50", second)
        wait_until(lambda: runs(prometheus) == {"train": 1, "r50": 1})

        second.close()

        wait_until(lambda: runs(prometheus) == {"train": 1})
