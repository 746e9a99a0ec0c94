"""Two ranks that torchrun started, on a real mixer server."""

from contextlib import ExitStack
from pathlib import Path

import pytest
from faults import BOTH_LOST, ServerProcess, When, run_ranks, server_process
from serving import serve, tiny_mixer
from training import (
    events_of,
    images_mixed,
    page_value,
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


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_a_killed_server_costs_no_step(artefact: Path, tmp_path: Path):
    """A server that is killed in mid-run costs fallback batches, no step and no hang; a new one is used again."""
    out, steps = tmp_path / "run", 50 * 15
    train, val = write_pictures(tmp_path / "train.tar", 1000), write_pictures(tmp_path / "val.tar", 30)
    replacements: list[ServerProcess] = []
    with ExitStack() as servers:
        first = servers.enter_context(server_process(artefact, tmp_path))
        port = first.grpc.rpartition(":")[2]

        def replace() -> None:
            replacements.append(servers.enter_context(server_process(artefact, tmp_path, port=port)))

        flags = ["--data.train", train, "--data.val", val, "--out", str(out), "--epochs", "50"]
        faults = When(" epoch epoch=1 ", first.kill), When(BOTH_LOST, replace)
        ended = run_ranks([*flags, "--mixing.endpoint", first.grpc], tmp_path / "logs", *faults, limit_s=200)
        mixed_again = replacements[0].images_mixed()

    assert ended.status == 0, ended.logs
    summary = summary_of(out)
    fallbacks = [rank["fallbacks"] for rank in summary["ranks"]]
    assert [rank["steps"] for rank in summary["ranks"]] == [steps, steps]
    assert summary["images"] == steps * 64
    assert all(0 < count < steps for count in fallbacks)
    assert sum(epoch["fallbacks"] for epoch in events_of(out)) == summary["fallbacks"] == sum(fallbacks)
    assert ended.count("mixer_lost") == ended.count("mixer_back") == [1, 1]
    assert 0 < mixed_again <= summary["images"] - 32 * sum(fallbacks)
    for rank, count in enumerate(fallbacks):
        page = (out / f"metrics-rank{rank}.txt").read_text()
        assert page_value(page, "mixer_client_fallback_total") == count
