"""The edge of every program: a person's mistake becomes one sentence and an exit status, a bug keeps its traceback.

Statuses: 0 done, 1 a mixer or a child failed for good, 2 the input or the machine must change first, 128 + N stopped by
signal N, hence 130 interrupted by Ctrl-C.
"""

import functools
import sys
from collections.abc import Callable
from typing import ParamSpec

from samix.errors import InputError, MixerError

Arguments = ParamSpec("Arguments")


class ProgramFailed(Exception):
    """A program gives up for a reason that is neither its input nor a bug; the message says what to do."""


class ProgramStopped(Exception):
    """A program ends early in good order, because a signal asked it to; the message says how to go on."""

    def __init__(self, message: str, number: int) -> None:
        super().__init__(message)
        self.number = number
        """Of the signal."""


def program(body: Callable[Arguments, int | None]) -> Callable[Arguments, int]:
    """Decorate a verb's `main(argv=None) -> int | None`, so that it returns a status instead of raising.

    Anything but InputError, MixerError, ProgramFailed, ProgramStopped, OSError and Ctrl-C is a bug and keeps its
    traceback.
    """

    @functools.wraps(body)
    def main(*args: Arguments.args, **kwargs: Arguments.kwargs) -> int:
        try:
            return body(*args, **kwargs) or 0
        except InputError as err:
            return _fail(str(err), 2)
        except (MixerError, ProgramFailed) as err:
            return _fail(str(err), 1)
        except ProgramStopped as err:
            print(err, file=sys.stderr)
            return 128 + err.number
        except BrokenPipeError:  # of stdout, which the `samix` command answers, or of a child, which is a bug
            raise
        except OSError as err:  # address in use, no permission, disk full
            return _fail(_sentence(err), 2)
        except KeyboardInterrupt:
            return 130

    return main


def _sentence(err: OSError) -> str:
    if err.strerror is None:
        return str(err) or type(err).__name__
    return err.strerror if err.filename is None else f"{err.filename}: {err.strerror}"


def _fail(sentence: str, status: int) -> int:
    print(f"error: {sentence}", file=sys.stderr)
    return status
