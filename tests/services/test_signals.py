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


def test_a_signal_that_is_passed_on_is_one_request():
    """The same signal again within `repeats_s` asks nothing new, as when torchrun passes on what its group got too."""
    with stop_on_signals(repeats_s=60.0) as stop:
        for _ in range(3):
            os.kill(os.getpid(), signal.SIGTERM)
        answer, again = stop.wait(), stop.wait(timeout_s=0.0)

    assert (answer, again) == (signal.SIGTERM, None)


def test_another_signal_means_it_at_once():
    """Another signal is no repetition: SIGTERM and then Ctrl-C end the process at once."""
    code = (
        "import os, signal, services.signals as s\n"
        "with s.stop_on_signals(repeats_s=60.0):\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
    )

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)

    assert done.returncode == 128 + signal.SIGINT


def test_a_late_repetition_means_it():
    """After `repeats_s` the same signal again ends the process, by a clock that the test turns."""
    code = (
        "import signal, services.signals as s\n"
        "times = iter([10.0, 12.5])\n"
        "request = s.StopRequest(2.0, clock=lambda: next(times))\n"
        "request.receive(signal.SIGTERM)\n"
        "request.receive(signal.SIGTERM)\n"
    )

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)

    assert done.returncode == 128 + signal.SIGTERM
