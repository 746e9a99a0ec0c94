"""The systems that are compared: how each is started, with which settings, and who asks it."""

import sysconfig
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from services.malloc import VARIABLES

SCRIPTS = Path(__file__).parent / "peer_servers"
OURS = "samix"
PORT, SPARE_PORT, OTHER_SPARE_PORT = PORTS = ("{port}", "{spare-port}", "{other-spare-port}")
"""Stand for the port a server is to listen on, and two it may have besides, in its arguments and variables."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Variant:
    """One way to set a system up."""

    name: str
    """As the table calls it."""
    variables: Mapping[str, str] = field(default_factory=dict)
    """Environment variables of server and client."""


@dataclass(frozen=True, kw_only=True, slots=True)
class System:
    """One system, with a constant model behind its own front end."""

    name: str
    """As the table calls it."""
    requirements: Path | None
    """Its packages; None for those of this environment."""
    server: Sequence[str]
    """Arguments of its Python that start the server."""
    client: str
    """Script in `peer_servers` that asks it."""
    variants: Sequence[Variant]
    """Ways to set it up."""
    variables: Mapping[str, str] = field(default_factory=dict)
    """Environment variables that all variants need."""


_DOCUMENTED = Variant(name="as documented")
_TUNED = Variant(name="malloc tuned", variables=VARIABLES)
# Ray's own switch for load: no proxy, replicas listen themselves, at ports from a range.
_RAY_THROUGHPUT = Variant(
    name="throughput mode, malloc tuned",
    variables={
        **VARIABLES,
        "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
        "RAY_SERVE_DIRECT_INGRESS_MIN_GRPC_PORT": PORT,
        "RAY_SERVE_DIRECT_INGRESS_MAX_GRPC_PORT": str(1 << 16),  # it takes the lowest that is free
    },
)
_KSERVE_LIMIT = str(64 << 20)  # its own limit, 8 MB, refuses the batch


def _script(name: str, *args: str) -> Sequence[str]:
    return [str(SCRIPTS / name), "--port", PORT, "--spare-ports", SPARE_PORT, OTHER_SPARE_PORT, *args]


SYSTEMS: Sequence[System] = (
    System(
        name=OURS,
        requirements=None,
        server=["-m", "benchmarks.constant_server", "--grpc-port", PORT],
        client="samix_client.py",
        variants=[Variant(name="as it is")],
    ),
    System(
        name="PyTriton",
        requirements=SCRIPTS / "pytriton.txt",
        server=_script("pytriton_server.py"),
        client="oip_client.py",
        variants=[_DOCUMENTED, _TUNED],
        # Triton's Python backend is linked against the interpreter's library, which need not be on the system's path.
        variables={"LD_LIBRARY_PATH": sysconfig.get_config_var("LIBDIR")},
    ),
    System(
        name="KServe",
        requirements=SCRIPTS / "kserve.txt",
        server=_script(
            "kserve_server.py",
            *("--grpc_max_receive_message_length", _KSERVE_LIMIT, "--grpc_max_send_message_length", _KSERVE_LIMIT),
            *("--enable_latency_logging", "false"),
        ),
        client="oip_client.py",
        variants=[_DOCUMENTED, _TUNED],
    ),
    System(
        name="Ray Serve",
        requirements=SCRIPTS / "ray.txt",
        server=_script("ray_server.py"),
        client="ray_client.py",
        variants=[_DOCUMENTED, _TUNED, _RAY_THROUGHPUT],
        variables={"RAY_USAGE_STATS_ENABLED": "0"},
    ),
    System(
        name="LitServe",
        requirements=SCRIPTS / "litserve.txt",
        server=_script("litserve_server.py"),
        client="litserve_client.py",
        variants=[_DOCUMENTED, _TUNED],
    ),
)
"""Ours first, then the peers."""
