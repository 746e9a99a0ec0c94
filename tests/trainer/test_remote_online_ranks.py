"""Two ranks whose mixer a server trains, in processes of their own, and a server that is killed in mid-run."""

import os
import signal
import socket
from contextlib import ExitStack
from pathlib import Path

import pytest
from child_server import child_server
from faults import BOTH_LOST, When, run_ranks
from training import page_value, processes_of, summary_of, write_pictures

from samix.mixing.artefact import load_mixer

LIMIT_S = 240.0
STEPS = 60
"""Of an epoch."""
BATCH = 32
"""Of both ranks."""
EPOCHS = 3

pytestmark = [pytest.mark.slow, pytest.mark.timeout(2 * LIMIT_S)]


@pytest.fixture
def shards(tmp_path: Path) -> list[str]:
    """Flags that name shards of STEPS steps."""
    folder = tmp_path / "shards"
    folder.mkdir()
    for number in range(4):
        write_pictures(folder / f"train-{number}.tar", STEPS * BATCH // 4)
    val = write_pictures(folder / "val.tar", 30)
    return ["--data.train", f"{folder}/train-{{0..3}}.tar", "--data.val", val, "--data.global-batch", str(BATCH)]


def test_a_killed_server_costs_the_steps_since_its_checkpoint(tmp_path: Path, shards: list[str]):
    """After kill -9 and a new start ranks join again, no step is left out, and log and counters say what was lost."""
    every = 25
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    flags = ["--online.memory-mib", "512", "--online.folder", str(tmp_path / "online"), "--device", "cpu"]
    flags += ["--online.checkpoint-steps", str(every), "--grpc-port", port]
    out = tmp_path / "run"
    training = [*shards, "--out", str(out), "--epochs", str(EPOCHS), "--log-every", "5"]
    training += ["--mixing.policy", "remote-online", "--mixing.endpoint", f"127.0.0.1:{port}"]
    training += [
        "--mixing.failure-budget",
        "100000",
        "--mixing.deadline-s",
        "10",
        "--mixing.session.weights-every",
        "5",
    ]
    with ExitStack() as servers:
        first = servers.enter_context(child_server(tmp_path, *flags))

        def kill_server() -> None:
            os.kill(first.process.pid, signal.SIGKILL)
            first.process.wait()

        def start_another() -> None:
            """Meanwhile the ranks stand still: without a mixer to wait for they would be through in seconds."""
            ranks = list(processes_of(str(out)))
            for process_id in ranks:
                os.kill(process_id, signal.SIGSTOP)
            (tmp_path / "again").mkdir()
            servers.enter_context(child_server(tmp_path / "again", *flags))
            for process_id in ranks:
                os.kill(process_id, signal.SIGCONT)

        hears = When(" step epoch=2 step=10 ", kill_server), When(BOTH_LOST, start_another)
        ended = run_ranks(training, tmp_path / "logs", *hears, limit_s=LIMIT_S)

    assert ended.status == 0, ended.logs
    assert [rank["steps"] for rank in summary_of(out)["ranks"]] == [EPOCHS * STEPS] * 2
    assert ended.count("mixer_lost") == [1, 1]
    assert ended.count("session_joined_again") == [1, 1]
    assert ended.count("mixer_back") == [1, 1]
    for rank in range(2):
        page = (out / f"metrics-rank{rank}.txt").read_text()
        assert page_value(page, "mixer_client_session_rejoins_total") == 1
        assert page_value(page, "mixer_client_session_lost_steps_total") <= every
        assert f"lost_steps={page_value(page, 'mixer_client_session_lost_steps_total'):.0f}" in ended.logs[rank]
        assert 0 < page_value(page, "mixer_client_fallback_total") < EPOCHS * STEPS
    assert load_mixer(out / "mixer.safetensors").name == "run"
