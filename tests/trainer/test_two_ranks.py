"""Two ranks that torchrun started, on a real mixer server."""

import os
import signal
from contextlib import ExitStack
from pathlib import Path
from urllib.request import urlopen

import pytest
from serving import serve, tiny_mixer
from training import (
    events_of,
    images_mixed,
    page_value,
    processes_of,
    summary_of,
    survivors,
    torchrun,
    write_pictures,
)

from trainer.children import start_child

LIMIT_S = 110.0


def quiet(_line: str) -> None:
    """Hear a line and do nothing."""


def test_two_ranks_share_a_server(data: list[str], tmp_path: Path):
    """Both ranks make the same steps, every image is mixed by the server once, and nobody falls back."""
    out = tmp_path / "run"
    with serve(tiny_mixer()) as server:
        patient = ["--mixing.endpoint", server.addresses["grpc"], "--mixing.deadline-s", "60"]
        flags = torchrun("--epochs", "2", *patient, *data, "--out", str(out))
        with start_child("torch.distributed.run", flags, tmp_path / "train.log") as ranks:
            ranks.wait(LIMIT_S, quiet)
        mixed = images_mixed(server)

    summary = summary_of(out)
    each = {"steps": 6, "images": 192, "skipped_samples": 0, "fallbacks": 0, "retries": 0}
    assert summary["ranks"] == [each, each]
    assert summary["images"] == mixed == 384
    assert summary["evaluated"] == 30
    for rank in range(2):
        page = (out / f"metrics-rank{rank}.txt").read_text()
        assert page_value(page, "trainer_images_total") == 192
        assert page_value(page, "mixer_client_wait_seconds_count") == 6
    assert survivors(str(tmp_path)) == {}


class Outage:
    """Kills the server after the first epoch, and starts one on the same port when both ranks noticed."""

    def __init__(self, artefact: Path, folder: Path, servers: ExitStack) -> None:
        self._flags = ["--mixers", str(artefact), "--num-threads", "1", "--http-port", "0", "--metrics-port", "0"]
        self._folder = folder
        self._servers = servers
        self.grpc, self.metrics = self._start("0")
        self.lost: list[str] = []
        self.back: list[str] = []
        self._is_killed = False

    def hear(self, line: str) -> None:
        """Act on a line of the ranks' log."""
        if " epoch epoch=1 " in line and not self._is_killed:
            self._is_killed = True
            (server,) = processes_of(f"mixer_server --mixers {self._flags[1]}")
            os.kill(server, signal.SIGKILL)
        if " mixer_lost " in line:
            self.lost.append(line)
            if len(self.lost) == 2:
                _, self.metrics = self._start(self.grpc.rpartition(":")[2])
        if " mixer_back " in line:
            self.back.append(line)

    def _start(self, port: str) -> tuple[str, str]:
        log = self._folder / f"server-{port}.log"
        server = self._servers.enter_context(start_child("mixer_server", [*self._flags, "--grpc-port", port], log))
        words = server.wait_for_line("ready ", LIMIT_S).split()[1:]
        addresses = dict(word.split("=", 1) for word in words)
        return addresses["grpc"], addresses["metrics"]


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_a_killed_server_costs_no_step(artefact: Path, tmp_path: Path):
    """A server that is killed in mid-run costs fallback batches, no step and no hang; a new one is used again."""
    out, steps = tmp_path / "run", 50 * 15
    train, val = write_pictures(tmp_path / "train.tar", 1000), write_pictures(tmp_path / "val.tar", 30)
    with ExitStack() as servers:
        outage = Outage(artefact, tmp_path, servers)
        data = ["--data.train", train, "--data.val", val, "--out", str(out), "--epochs", "50"]
        flags = torchrun(*data, "--mixing.endpoint", outage.grpc)
        ranks = servers.enter_context(start_child("torch.distributed.run", flags, tmp_path / "train.log"))

        ranks.wait(200, outage.hear)

        with urlopen(f"http://{outage.metrics}/metrics") as page:
            mixed_again = page_value(page.read().decode(), "mixer_images_total")

    summary = summary_of(out)
    fallbacks = [rank["fallbacks"] for rank in summary["ranks"]]
    assert [rank["steps"] for rank in summary["ranks"]] == [steps, steps]
    assert summary["images"] == steps * 64
    assert all(0 < count < steps for count in fallbacks)
    assert sum(epoch["fallbacks"] for epoch in events_of(out)) == summary["fallbacks"] == sum(fallbacks)
    assert {word for line in outage.lost for word in line.split() if word.startswith("rank=")} == {"rank=0", "rank=1"}
    assert {word for line in outage.back for word in line.split() if word.startswith("rank=")} == {"rank=0", "rank=1"}
    assert 0 < mixed_again <= summary["images"] - 32 * sum(fallbacks)
    for rank, count in enumerate(fallbacks):
        page = (out / f"metrics-rank{rank}.txt").read_text()
        assert page_value(page, "mixer_client_fallback_total") == count
