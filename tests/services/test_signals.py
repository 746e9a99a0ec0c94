import os
import signal
import subprocess
import sys

import pytest

from services.signals import stop_on_signals


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_first_signal_asks(number: signal.Signals):
    """The first signal ends the wait, is remembered, and the handlers before are back afterwards."""
    before = signal.getsignal(number)

    with stop_on_signals() as stop:
        assert stop.signal is None
        os.kill(os.getpid(), number)
        answer = stop.wait()

    assert answer == stop.signal == number
    assert signal.getsignal(number) is before


def test_second_signal_means_it():
    """The second signal ends the process at once with 128 + its number, whatever the program is doing."""
    code = "import os, signal, services.signals as s\nwith s.stop_on_signals():\n" + 2 * (
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
    )

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)

    assert done.returncode == 128 + signal.SIGTERM
    assert done.stderr == "second SIGTERM: exiting without waiting\n"
