"""A real `samix serve` on a core of its own."""

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.machine import bind_child
from samix.mixing.artefact import save_artefact
from samix.mixing.frozen import FrozenMixer
from trainer.children import start_child

_READY_S = 120.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Served:
    """A server that is ready."""

    process_id: int
    """Of the server."""
    targets: dict[str, str]
    """Where it listens: `tcp` and `unix`."""
    artefacts: dict[str, Path]
    """The files it serves, by the mixer's name."""


@contextmanager
def serving(mixers: Sequence[FrozenMixer], core: int | None, log: Path) -> Iterator[Served]:
    """Host mixers in a process of its own, one thread on one core; it is gone after the block.

    Raises:
        ChildFailed: if it does not get ready.
    """
    print(f"starting a server with {', '.join(mixer.name for mixer in mixers)} (log: {log})", flush=True)
    with tempfile.TemporaryDirectory(prefix="samix-bench-") as name, ExitStack() as running:
        artefacts = {mixer.name: Path(name) / f"{mixer.name}.safetensors" for mixer in mixers}
        for mixer in mixers:
            save_artefact(artefacts[mixer.name], mixer, {"data": "none"})
        socket = Path(name) / "mixer.sock"
        ports = [part for port in ("grpc", "http", "metrics") for part in (f"--{port}-port", "0")]
        args = ["serve", "--mixers", name, "--device", "cpu", "--num-threads", "1", "--unix-socket", str(socket)]
        server = running.enter_context(start_child("samix", [*args, *ports], log))
        bind_child(server.process_id, core)
        line = server.wait_for_line("ready ", _READY_S)
        addresses = dict(part.split("=", 1) for part in line.split()[1:])
        targets = {"tcp": addresses["grpc"], "unix": f"unix://{socket}"}
        yield Served(process_id=server.process_id, targets=targets, artefacts=artefacts)
