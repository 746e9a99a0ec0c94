"""Who streams batches in `samix bench dataset`: this server, and tf.data service."""

import json
from pathlib import Path
from typing import Any

from benchmarks.peer_systems import OTHER_SPARE_PORT, PORT, SCRIPTS, SPARE_PORT, System, Variant
from services.malloc import VARIABLES

DATASET = "crops"
"""Name of the dataset on our server; the client script says the same."""
_HIDE_HINTS = {"TF_CPP_MIN_LOG_LEVEL": "2"}

TF_DATA = System(
    name="tf.data service",
    requirements=SCRIPTS / "tfdata.txt",
    server=[
        *(str(SCRIPTS / "tfdata_server.py"), "--port", PORT),
        *("--spare-ports", SPARE_PORT, OTHER_SPARE_PORT),
    ],
    client="tfdata_client.py",
    variants=[
        Variant(name="as documented", variables=_HIDE_HINTS),
        Variant(name="malloc tuned", variables={**_HIDE_HINTS, **VARIABLES}),
    ],
)


def our_system(shards: Path, memory_mib: int, options: dict[str, Any], *more: str) -> System:
    """Describe our server over some shards, and a consumer of it.

    Args:
        shards: what is read.
        memory_mib: for decoded pictures.
        options: of `subscribe`, and `mixer`.
        more: further flags of the server.
    """
    ports = ["--grpc-port", PORT, "--http-port", "0", "--metrics-port", "0"]
    memory = ["--datasets.memory-mib", str(memory_mib), "--datasets.num-workers", "1"]
    return System(
        name="samix",
        requirements=None,
        server=["-m", "samix", "serve", "--dataset", f"{DATASET}={shards}", *ports, *memory, *more],
        client="samix_dataset_client.py",
        variants=[Variant(name="as it is", variables={"SAMIX_BENCH_SUBSCRIBE": json.dumps(options)})],
    )
