"""How the processes that decode are started, and what ends them."""

import os
import signal
import threading
from multiprocessing import forkserver, get_context, parent_process, resource_tracker
from multiprocessing.context import ForkServerContext

from services.signals import STOP_SIGNALS, StopRequest


def worker_context() -> ForkServerContext:
    """Make what starts workers, which import nothing of this process and get no Ctrl-C."""
    # A forked copy of a process that uses gRPC crashes or hangs: grpc/grpc#32992. The fork server never saw gRPC, and
    # imports torch once for all workers.
    context = get_context("forkserver")
    context.set_forkserver_preload(["services.shards.dataset"])
    resource_tracker.ensure_running()  # unblocks what the fork server is to inherit, if it is started by that
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return context


def leave_signals_to_parent(_worker: int = 0) -> None:
    """Outlive a Ctrl-C or SIGTERM that reaches every process of a run: its program needs batches until it has saved.

    Both are blocked since the fork server began. A second SIGTERM is meant, such as torch's to a worker that is stuck.
    """
    _follow_parent()
    request = StopRequest()
    signal.signal(signal.SIGTERM, request.receive)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})


def _follow_parent() -> None:
    # torch watches the fork server instead, which lives as long as its workers: a killed trainer would leave them all.
    parent = parent_process()
    assert parent is not None

    def exit_with_parent() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=exit_with_parent, daemon=True, name="follow-parent").start()
