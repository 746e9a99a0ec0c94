"""A disk that is full while a run writes one of its files."""

from collections.abc import Callable
from pathlib import Path

import pytest
from training import make_batch

from trainer.cli import main
from trainer.report import RunLog
from trainer.sample_trace import trace_path, traced


@pytest.mark.parametrize(
    ("file", "written"),
    [
        ("config.json", "config.json"),
        ("metrics-rank0.txt", "metrics-rank0.txt"),
        ("summary.json", "summary.json.partial"),
    ],
)
def test_the_sentence_of_a_run_names_the_file(
    data: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], file: str, written: str
):
    """Whichever file finds no room on the disk, the run ends in a sentence that names it."""
    (tmp_path / written).symlink_to("/dev/full")
    page = ["--metrics.port", "0", "--metrics.linger-s", "0"]
    flags = ["--mixing.policy", "cutmix", "--epochs", "1", "--device", "cpu", "--out", str(tmp_path)]

    status = main(["digits_cpu", *data, *page, *flags])

    assert status == 2
    assert capsys.readouterr().err.splitlines()[-1] == f"error: {tmp_path / file}: No space left on device"


@pytest.mark.parametrize(
    ("write", "file"),
    [
        (lambda folder: RunLog(folder, is_writer=True).write("step", epoch=1), "log.jsonl"),
        (
            lambda folder: list(traced([make_batch()], trace_path(folder, 0), epoch=0, first_batch=0, micro_batches=1)),
            "samples-rank0.jsonl",
        ),
    ],
    ids=["log", "trace"],
)
def test_the_error_of_a_row_names_the_file(tmp_path: Path, write: Callable[[Path], object], file: str):
    """A row that finds no room names its file, which the refused write itself does not."""
    (tmp_path / file).symlink_to("/dev/full")

    with pytest.raises(OSError, match="No space left on device") as error:
        write(tmp_path)

    assert error.value.filename == str(tmp_path / file)
