import errno

import pytest

from samix.errors import MixerUnavailable, ShardError
from services.cli import program


@pytest.mark.parametrize(
    ("error", "status", "sentence"),
    [
        (ShardError("no shard matches 'x'"), 2, "error: no shard matches 'x'\n"),
        (MixerUnavailable("mixer at a:1 is down"), 1, "error: mixer at a:1 is down\n"),
        (OSError(errno.EADDRINUSE, "Address already in use"), 2, "error: Address already in use\n"),
        (PermissionError(errno.EACCES, "Permission denied", "/a"), 2, "error: /a: Permission denied\n"),
        (KeyboardInterrupt(), 130, ""),
    ],
)
def test_a_mistake_becomes_a_sentence_and_a_status(error, status, sentence, capsys):
    """What a person, a machine or a mixer got wrong ends a program with one sentence on stderr and a status."""

    @program
    def main(argv=None):
        raise error

    returned = main([])

    assert returned == status
    assert capsys.readouterr().err == sentence


def test_a_bug_keeps_its_traceback():
    """An error that nobody expected passes through the edge."""

    @program
    def main(argv=None):
        raise KeyError("bug")

    with pytest.raises(KeyError):
        main([])


def test_a_closed_pipe_passes_through():
    """Whether it was the reader of stdout who left is for the `samix` command to say."""

    @program
    def main(argv=None):
        raise BrokenPipeError(errno.EPIPE, "Broken pipe")

    with pytest.raises(BrokenPipeError):
        main([])


@pytest.mark.parametrize(("returned", "status"), [(None, 0), (0, 0), (3, 3)])
def test_status_of_a_program_that_returns(returned, status):
    """Returning nothing is success; a number is the exit status."""

    @program
    def main(argv=None):
        return returned

    assert main() == status
