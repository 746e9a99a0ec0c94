"""`samix quickstart`: the whole product in one command, and nothing of it left running."""

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from training import processes_of, survivors

from trainer.children import ChildFailed, start_child
from trainer.quickstart import main

INTERRUPTS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@pytest.fixture(autouse=True)
def usual_signals() -> Iterator[None]:
    """Handle signals as in a terminal, also where the tests run in the background of a script, and put them back."""
    before = {number: signal.getsignal(number) for number in INTERRUPTS}
    for number in INTERRUPTS:
        signal.signal(number, signal.default_int_handler)  # children start with the default action
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--ranks", "0", "--epochs", "2"], "ranks, pretrain_epochs and epochs must be at least 1, got 0, 15 and 2"),
        (["--ranks", "3"], "ranks must divide the batch of 64 images, got 3"),
        (["--out", "/dev/null/quickstart"], "/dev/null/quickstart"),
    ],
)
def test_refuses_before_the_first_phase(flags: list[str], sentence: str, capsys: pytest.CaptureFixture[str]):
    """What the last phase could not do is refused before the first one, in one sentence and with status 2."""
    status = main(flags)

    output = capsys.readouterr()
    assert status == 2
    assert output.err.startswith("error: ")
    assert sentence in output.err
    assert output.err.count("\n") == 1
    assert output.out == ""


def test_a_phase_that_fails_is_explained(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """A phase that fails ends everything with status 1, its name and the sentence from its log."""
    (tmp_path / "digits").mkdir()
    (tmp_path / "digits" / "precious.txt").write_text("mine")

    status = main(["--out", str(tmp_path)])

    errors = capsys.readouterr().err
    assert status == 1
    assert errors.startswith("error: `shards` ended with status 2; its log says\n  error: ")
    assert "holds other files (precious.txt, 1 in all)" in errors
    assert errors.endswith(f"(whole log: {tmp_path}/logs/shards.log)\n")


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_runs_everything(tmp_path: Path):
    """One command makes shards, a mixer, a server and two runs, and leaves pictures, numbers and no process."""
    out, lines = tmp_path / "quickstart", list[str]()
    flags = ["quickstart", "--out", str(out), "--pretrain-epochs", "1", "--epochs", "1"]

    with start_child("samix", flags, tmp_path / "quickstart.log") as child:
        child.wait(200, lines.append)

    summary = json.loads((out / "summary.json").read_text())
    assert [line[:5] for line in lines if line.startswith("[")] == [f"[{n}/7]" for n in range(1, 8)]
    assert summary["remote"]["fallbacks"] == summary["none"]["fallbacks"] == 0
    assert summary["remote"]["images"] == summary["none"]["images"] == summary["remote"]["steps"] * 64
    assert summary["remote"]["world_size"] == 2
    pictures = [out / f"{name}.png" for name in ("gallery", "masks", "curves")]
    assert all(path.stat().st_size > 1000 for path in pictures)
    assert "mixer_images_total" in (out / "metrics.txt").read_text()
    assert survivors(str(tmp_path)) == {}


@pytest.mark.slow
@pytest.mark.timeout(240)
@pytest.mark.parametrize("number", INTERRUPTS)
def test_leaves_no_process_when_it_is_interrupted(tmp_path: Path, number: signal.Signals):
    """Ctrl-C, SIGTERM and a closed terminal in the middle of training end server and ranks too."""
    out = tmp_path / "quickstart"
    flags = ["quickstart", "--out", str(out), "--pretrain-epochs", "1", "--epochs", "500"]
    running: list[int] = []

    def interrupt(line: str) -> None:
        if line.strip().startswith("epoch epoch=1 of=500 "):
            running.extend(processes_of(str(out)))
            (program,) = processes_of(f"samix quickstart --out {out}")
            os.kill(program, number)

    with (
        pytest.raises(ChildFailed, match="ended with status 130"),
        start_child("samix", flags, tmp_path / "quickstart.log") as child,
    ):
        child.wait(200, interrupt)

    assert len(running) == 5  # quickstart, server, torchrun, two ranks
    assert survivors(str(tmp_path)) == {}
    assert "Traceback" not in (tmp_path / "quickstart.log").read_text()
