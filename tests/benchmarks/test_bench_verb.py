"""`samix bench`: it finds its benchmarks, and refuses what is none."""

import pytest

from benchmarks.cli import main
from samix.cli import main as samix

BENCHMARKS = ("transport", "server", "local", "dataset", "peers")


@pytest.mark.parametrize("name", BENCHMARKS)
def test_every_benchmark_is_found(name: str, capsys: pytest.CaptureFixture[str]):
    """Flags after a benchmark's name reach it, and its refusal comes back."""
    status = samix(["bench", name, "--rounds", "0"])

    assert status == 2
    assert "rounds must lie in 1..99, got 0" in capsys.readouterr().err


def test_help_lists_the_benchmarks(capsys: pytest.CaptureFixture[str]):
    """Help names every benchmark, on stdout."""
    status = main(["--help"])

    out = capsys.readouterr().out
    assert status == 0
    assert all(f"  {name} " in out for name in BENCHMARKS)


def test_a_name_that_was_forgotten_is_a_usage_error(capsys: pytest.CaptureFixture[str]):
    """Without a name the list goes to stderr, with status 2."""
    status = main([])

    output = capsys.readouterr()
    assert status == 2
    assert output.err.startswith("usage: samix bench NAME")
    assert output.out == ""


def test_an_unknown_benchmark_is_refused(capsys: pytest.CaptureFixture[str]):
    """A misspelt name is answered with the known ones and status 2."""
    status = main(["peer"])

    err = capsys.readouterr().err
    assert status == 2
    assert err.startswith("error: no benchmark is called 'peer'\n")
    assert "  peers " in err
