"""Measure this machine's transport, server, local engine and the other systems."""

import importlib
import sys
from collections.abc import Sequence

_BENCHMARKS = {
    "transport": "the wire against raw sockets, with an engine that costs nothing",
    "server": "how much of a mixer's speed arrives through the server",
    "local": "the engine in this process",
    "online": "accuracy and step time with the mixer in training on a server, beside one process",
    "dataset": "batches streamed from a server, beside bare sockets, tf.data service and making them at home",
    "endurance": "what a server must survive: greedy clients, 200 at once, ten minutes of everything, kill -9",
    "wan": "two hosts that train by a mixer on a third, over a network that is late and loses packets; needs root",
    "intruders": "what a client keeps while intruders are at a server with certificates and tokens",
    "peers": "images served per second, beside PyTriton, KServe, Ray Serve and LitServe",
}
"""What can be measured; `benchmarks.NAME` does it."""


def main(argv: Sequence[str] | None = None) -> int | None:
    """Run one benchmark.

    Returns:
        2 for a benchmark that is not named or does not exist, else what it returns.
    """
    name, *flags = [*(sys.argv[1:] if argv is None else argv)] or [""]
    if name in ("-h", "--help"):
        print(_help_text())
        return 0
    if name not in _BENCHMARKS:
        said = f"error: no benchmark is called {name!r}\n" if name else ""
        print(f"{said}{_help_text()}", file=sys.stderr)
        return 2
    return importlib.import_module(f"benchmarks.{name}").main(flags)


def _help_text() -> str:
    lines = [f"  {name:<12}{about}" for name, about in _BENCHMARKS.items()]
    return "\n".join(
        ["usage: samix bench NAME [--flags]", "", *lines, "", "`samix bench NAME --help` lists the flags."]
    )
