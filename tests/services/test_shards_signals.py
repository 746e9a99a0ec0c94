"""Signals that reach all processes of a program at once, as from a terminal, `timeout`, Slurm or systemd."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest
from shard_making import write_noise_shards

PROGRAM = """
import os, signal, sys
from services.shards.config import DataConfig
from services.shards.loader import train_loader
from services.signals import stop_on_signals

if __name__ == "__main__":
    config = DataConfig(
        train=sys.argv[1], val=sys.argv[1], num_classes=3, image_size=8, global_batch=2, num_workers=1, prefetch=1
    )
    with stop_on_signals() as request, train_loader(config, seed=0) as loader:
        for number, _ in enumerate(loader):
            if number == 1:
                os.killpg(0, int(sys.argv[2]))
        print(number + 1, "of", loader.steps_per_epoch, "batches after signal", request.signal)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_workers_outlive_the_signal_that_stops_their_program(tmp_path: Path, number: signal.Signals):
    """A signal to the whole process group leaves a program its batches, so that it can stop where it wants to."""
    pattern = write_noise_shards(tmp_path, [60])
    script = tmp_path / "program.py"  # a file: workers import it
    script.write_text(PROGRAM)

    done = subprocess.run(
        [sys.executable, str(script), pattern, str(int(number))],
        capture_output=True,
        text=True,
        timeout=60,
        start_new_session=True,
    )

    assert done.stderr == ""
    assert done.stdout == f"30 of 30 batches after signal {int(number)}\n"
    assert done.returncode == 0
