"""Callers that each wait for their answer before they ask again: the load of every system, measured here.

A client script hands `run` a way to make a caller; the figures leave as a file of JSON.
"""

import argparse
import json
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from marked_processes import cpu_s, find_marked

Call = Callable[[], None]
"""Asks once, waits for the answer, decodes it."""

_SETTLE_BATCHES = 3
_READY_POLL_S = 0.1


def run(make_caller: Callable[[str], Call]) -> None:
    """Measure what the command line asks for.

    Args:
        make_caller: connects to an address; the caller it returns is used by one thread.
    """
    parser = argparse.ArgumentParser()
    parser.add_argument("--address", required=True, help="HOST:PORT of the server")
    parser.add_argument("--concurrency", type=int, nargs="+", required=True, help="callers, measured in this order")
    parser.add_argument("--seconds", type=float, required=True, help="length of each measurement")
    parser.add_argument("--mark", required=True, help="of the server's processes")
    parser.add_argument("--ready-timeout-s", type=float, required=True, help="longest wait for the first answer")
    parser.add_argument("--out", type=Path, required=True, help="where to write the figures")
    flags = parser.parse_args()
    wait_ready(make_caller, flags.address, flags.ready_timeout_s)
    figures = []
    for concurrency in flags.concurrency:
        callers = [make_caller(flags.address) for _ in range(concurrency)]
        figures.append(measure(callers, flags.seconds, find_marked(flags.mark)))
    flags.out.write_text(json.dumps(figures))


def wait_ready(make_caller: Callable[[str], Call], address: str, timeout_s: float) -> None:
    """Ask until the server answers.

    Raises:
        Exception: what it said last, if it does not within `timeout_s`.
    """
    end_s = time.monotonic() + timeout_s
    while True:
        try:
            return make_caller(address)()
        except Exception:  # each system has its own for 'not yet'
            if time.monotonic() > end_s:
                raise
            time.sleep(_READY_POLL_S)


def measure(callers: list[Call], seconds: float, server: list[int]) -> dict[str, Any]:
    """Let all callers ask at once for a while; a batch counts if it was answered within that time.

    Args:
        callers: one for each thread.
        seconds: how long.
        server: ids of the server's processes.

    Returns:
        Number of callers, of batches and the time that passed in seconds; processor seconds of the server and of this
        process; each batch's latency in seconds.

    Raises:
        Exception: the first that a caller raised.
    """
    _ask_all(callers, lambda number, _: number < _SETTLE_BATCHES)
    server_cpu_s, own_cpu_s, started_s = cpu_s(server), time.process_time(), time.perf_counter()
    end_s = started_s + seconds
    latencies_s = _ask_all(callers, lambda _, now_s: now_s < end_s)
    elapsed_s = time.perf_counter() - started_s
    return {
        "concurrency": len(callers),
        "batches": len(latencies_s),
        "elapsed_s": elapsed_s,
        "server_cpu_s": cpu_s(server) - server_cpu_s,
        "client_cpu_s": time.process_time() - own_cpu_s,
        "latencies_s": [round(latency_s, 6) for latency_s in latencies_s],
    }


def _ask_all(callers: list[Call], goes_on: Callable[[int, float], bool]) -> list[float]:
    """Let each caller ask while `goes_on` says so, given the batches it had and the time; return all latencies."""
    latencies_s: list[float] = []
    errors: list[Exception] = []

    def ask(call: Call) -> None:
        number = 0
        try:
            while not errors and goes_on(number, now_s := time.perf_counter()):
                call()
                latencies_s.append(time.perf_counter() - now_s)
                number += 1
        except Exception as err:  # noqa: BLE001, raised again on the main thread
            errors.append(err)

    threads = [threading.Thread(target=ask, args=(call,), daemon=True) for call in callers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return latencies_s
