"""Prometheus finds the pages of all ranks."""

import json
import shutil
import subprocess
from contextlib import closing
from pathlib import Path
from urllib.request import ProxyHandler, build_opener

import pytest
import torch.multiprocessing as mp
from training import ALONE, join_as, spawn_two_ranks

from samix.errors import ConfigError
from services.metrics import serve_metrics
from trainer.discovery import FILE_NAME, announce_pages
from trainer.metrics import MetricsConfig, TrainerMetrics


def targets(folder: Path) -> list[str]:
    [group] = json.loads((folder / FILE_NAME).read_text())
    return group["targets"]


def test_pages_are_listed_while_the_run_lasts(tmp_path: Path):
    """The file names the pages and the run, and goes with the run."""
    with announce_pages(tmp_path, "r50", MetricsConfig(), 8010, ALONE):
        written = json.loads((tmp_path / FILE_NAME).read_text())
        names = [entry.name for entry in tmp_path.iterdir()]

    assert written == [{"targets": ["127.0.0.1:8010"], "labels": {"job": "samix-trainer", "run": "r50"}}]
    assert names == [FILE_NAME]
    assert list(tmp_path.iterdir()) == []


def test_list_goes_when_the_run_fails(tmp_path: Path):
    """A run that ends with an error leaves no list of pages that are gone."""
    with pytest.raises(RuntimeError), announce_pages(tmp_path, "r50", MetricsConfig(), 8010, ALONE):
        raise RuntimeError

    assert list(tmp_path.iterdir()) == []


def test_shared_folder_lists_each_run(tmp_path: Path):
    """Runs that share a folder have a list each in it, which goes with its run; the folder is made."""
    shared = tmp_path / "targets"
    config = MetricsConfig(targets_folder=shared)
    for name in ("r50", "r18"):
        (tmp_path / name).mkdir()

    with announce_pages(tmp_path / "r50", "r50", config, 8010, ALONE):
        with announce_pages(tmp_path / "r18", "r18", config, 8011, ALONE):
            both = {path.name: json.loads(path.read_text()) for path in shared.iterdir()}
        [left] = shared.iterdir()

    assert both == {
        "r50.json": [{"targets": ["127.0.0.1:8010"], "labels": {"job": "samix-trainer", "run": "r50"}}],
        "r18.json": [{"targets": ["127.0.0.1:8011"], "labels": {"job": "samix-trainer", "run": "r18"}}],
    }
    assert left.name == "r50.json"
    assert list(shared.iterdir()) == []


def test_resumed_run_replaces_what_it_left(tmp_path: Path):
    """The list of a run that was killed names the pages of the same run when it goes on."""
    shared = tmp_path / "targets"
    shared.mkdir()
    (shared / "r50.json").write_text('[{"targets": ["10.0.0.9:8010"]}]')

    with announce_pages(tmp_path, "r50", MetricsConfig(targets_folder=shared), 8010, ALONE):
        [group] = json.loads((shared / "r50.json").read_text())

    assert group["targets"] == ["127.0.0.1:8010"]
    assert list(shared.iterdir()) == []


def test_list_of_another_run_stays(tmp_path: Path):
    """A run whose list was replaced by another of its name leaves that one alone."""
    config = MetricsConfig(targets_folder=tmp_path / "targets")
    (tmp_path / "r50").mkdir()

    with announce_pages(tmp_path, "r50", config, 8010, ALONE):
        later = announce_pages(tmp_path / "r50", "r50", config, 8011, ALONE)
        later.__enter__()

    [group] = json.loads((tmp_path / "targets" / "r50.json").read_text())
    assert group["targets"] == ["127.0.0.1:8011"]
    later.__exit__(None, None, None)


def test_shared_folder_that_is_none(tmp_path: Path):
    """A shared folder that cannot be written to is refused with the flag to change."""
    (tmp_path / "targets").write_text("a file")
    config = MetricsConfig(targets_folder=tmp_path / "targets")

    with (
        pytest.raises(ConfigError, match=r"choose another --metrics\.targets-folder"),
        announce_pages(tmp_path, "r50", config, 8010, ALONE),
    ):
        pass

    assert not (tmp_path / FILE_NAME).exists()


@pytest.mark.parametrize(
    ("host", "advertise", "target"),
    [
        ("0.0.0.0", "node-7.cluster", "node-7.cluster:8010"),
        ("0.0.0.0", "fd00::7", "[fd00::7]:8010"),
        ("10.0.0.7", "", "10.0.0.7:8010"),
        ("node-7", "", "node-7:8010"),
        ("::1", "", "[::1]:8010"),
    ],
)
def test_advertised_host(tmp_path: Path, host: str, advertise: str, target: str):
    """What a person advertises counts, else the host the page is served on."""
    config = MetricsConfig(host=host, advertise=advertise)

    with announce_pages(tmp_path, "r50", config, 8010, ALONE):
        found = targets(tmp_path)

    assert found == [target]


def test_page_on_all_networks_is_reached_by_its_target(tmp_path: Path):
    """A page on all networks is listed under an address of this machine, which answers."""
    direct = build_opener(ProxyHandler({}))
    config = MetricsConfig(host="0.0.0.0")

    with (
        closing(serve_metrics(TrainerMetrics(0).registry, config.host, 0)) as page,
        announce_pages(tmp_path, "r50", config, page.port, ALONE),
    ):
        [target] = targets(tmp_path)
        with direct.open(f"http://{target}/metrics", timeout=10) as answer:
            found = answer.read().decode()

    assert not target.startswith(("0.0.0.0", "127."))
    assert "trainer_steps_total" in found


def announce_as_rank(rank: int, port: int, folder: Path, results: mp.SimpleQueue) -> None:
    """Announce a page on port 9000 + rank, and say what the list holds in the meantime."""
    with join_as(rank, port) as world, announce_pages(folder, "r50", MetricsConfig(), 9000 + rank, world):
        world.gather(None)
        results.put(targets(folder))
        world.gather(None)


@pytest.mark.slow
def test_pages_of_all_ranks(tmp_path: Path):
    """The main rank lists every rank's page, in their order."""
    results = mp.get_context("spawn").SimpleQueue()

    spawn_two_ranks(announce_as_rank, tmp_path, results)

    assert results.get() == results.get() == ["127.0.0.1:9000", "127.0.0.1:9001"]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")
def test_promtool_accepts_the_list(tmp_path: Path):
    """A Prometheus that watches the file for its targets accepts it."""
    config = tmp_path / "prometheus.yml"
    config.write_text(
        f"scrape_configs:\n  - job_name: samix\n    file_sd_configs:\n      - files: [{tmp_path / FILE_NAME}]\n"
    )

    with announce_pages(tmp_path, "r50", MetricsConfig(), 8010, ALONE):
        check = subprocess.run(["promtool", "check", "config", config], capture_output=True, text=True, check=False)

    assert check.returncode == 0, check.stderr
    assert "SUCCESS" in check.stdout
