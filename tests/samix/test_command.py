import os
import subprocess
import sys
from importlib.metadata import EntryPoint, entry_points

import pytest

from samix.cli import describe, help_text, main, missing_packages


def test_help_lists_the_verbs_with_a_line_each(capsys):
    """`samix --help` lists every verb of this installation with the first line of its module."""
    status = main(["--help"])

    out = capsys.readouterr().out
    assert status == 0
    assert "  shards            Write a data set as WebDataset shards" in out
    assert all(f"  {verb.name} " in out for verb in entry_points(group="samix.commands"))


def test_a_verb_that_was_forgotten_is_a_usage_error(capsys):
    """`samix` alone prints the help to stderr and ends with 2."""
    status = main([])

    output = capsys.readouterr()
    assert status == 2
    assert "usage: samix VERB" in output.err
    assert output.out == ""


def test_version(capsys):
    """`samix --version` prints the version of the distribution."""
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("samix 0.")


def test_an_unknown_verb_is_refused_with_the_known_ones(capsys):
    """A misspelt verb is answered in one sentence and status 2."""
    status = main(["shard"])

    assert status == 2
    err = capsys.readouterr().err
    assert err.startswith("error: no verb is called 'shard'; `samix --help` lists ")
    assert err.count("\n") == 1


def test_a_verb_gets_its_flags_and_gives_its_status(tmp_path, capsys):
    """What follows the verb goes to its main, whose status comes back."""
    status = main(["shards", "nothing", "--out", str(tmp_path)])

    assert status == 2
    assert "no source is called 'nothing'" in capsys.readouterr().err


@pytest.mark.parametrize("argv", [["--help"], ["nonsense"]])
def test_the_command_answers_without_importing_torch(argv):
    """Help and refusals come at once: neither torch nor a verb's packages are imported."""
    code = f"import sys, samix.cli; samix.cli.main({argv}); sys.exit('torch' in sys.modules or 'tyro' in sys.modules)"

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)

    assert done.returncode == 0, done.stderr.decode()


@pytest.fixture
def verb_that(tmp_path, monkeypatch):
    """Install a distribution whose verb `paint` consists of given code."""

    def install(code: str) -> None:
        info = tmp_path / "colours-1.0.dist-info"
        info.mkdir()
        info.joinpath("METADATA").write_text("Metadata-Version: 2.4\nName: colours\nVersion: 1.0\n")
        info.joinpath("entry_points.txt").write_text("[samix.commands]\npaint = colours:main\n")
        tmp_path.joinpath("colours.py").write_text(code)
        monkeypatch.delitem(sys.modules, "colours", raising=False)
        monkeypatch.syspath_prepend(tmp_path)

    return install


def test_ctrl_c_while_a_verb_is_imported(verb_that, capsys):
    """Ctrl-C during the seconds of imports ends with 130 and no traceback."""
    verb_that("raise KeyboardInterrupt")

    assert main(["paint"]) == 130
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    "argv",
    [
        ["--help"],
        ["--version"],
        ["shards", "--help"],
        pytest.param(["pretrain", "--help"], marks=pytest.mark.slow),
        pytest.param(["train", "digits_cpu", "--help"], marks=pytest.mark.slow),
    ],
)
def test_a_reader_that_leaves_is_no_error(argv):
    """`samix ... | head` ends as other tools do: nothing on stderr, and the status of SIGPIPE."""
    read_end, write_end = os.pipe()
    os.close(read_end)

    done = subprocess.run([sys.executable, "-m", "samix", *argv], stdout=write_end, stderr=subprocess.PIPE, check=False)
    os.close(write_end)

    assert done.stderr == b""
    assert done.returncode == 141


def test_another_closed_pipe_is_an_error(verb_that):
    """A pipe to a child that died is not mistaken for a reader of stdout that left."""
    verb_that("def main(argv):\n    raise BrokenPipeError(32, 'Broken pipe')")

    with pytest.raises(BrokenPipeError):
        main(["paint"])


@pytest.fixture
def lacking(tmp_path):
    """An installed distribution whose verb needs an extra that is not installed."""
    info = tmp_path / "colours-1.0.dist-info"
    info.mkdir()
    info.joinpath("METADATA").write_text(
        "Metadata-Version: 2.4\nName: colours\nVersion: 1.0\nRequires-Dist: numpy>=1\n"
        "Requires-Dist: no-such-package[x]>=2; extra == 'paint'\nRequires-Dist: other-package; extra == 'other'\n"
    )
    info.joinpath("entry_points.txt").write_text("[samix.commands]\npaint = colours.cli:main [paint]\n")
    sys.path.insert(0, str(tmp_path))
    yield next(verb for verb in entry_points(group="samix.commands") if verb.name == "paint")
    sys.path.remove(str(tmp_path))


def test_a_verb_that_lacks_packages_is_listed_with_its_cure(lacking):
    """The help says what to install for a verb whose extra is missing."""
    text = help_text({"paint": lacking})

    assert "not installed:\n  paint             pip install 'colours[paint]'" in text
    assert missing_packages(lacking) == ["no-such-package"]


def test_a_verb_that_lacks_packages_is_refused(lacking, capsys):
    """Running it answers the same in one sentence and status 2."""
    status = main(["paint"])

    assert status == 2
    assert capsys.readouterr().err == "error: `samix paint` needs no-such-package; run pip install 'colours[paint]'\n"


@pytest.mark.parametrize("target", ["no_such_package.cli:main", "samix.no_such_module:main"])
def test_a_broken_verb_does_not_break_the_help(target):
    """A verb whose module is gone is listed as such."""
    verb = EntryPoint("paint", target, "samix.commands")

    assert describe(verb) == f"(module {verb.module} is missing)"
