"""The containers of compose.yaml, started by `make up` as anybody would, under a name of their own."""

import json
import os
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from expressions import DEPLOY

ROOT = DEPLOY.parent
TAG = "test"
"""Of the images; they stay, as a cache for the next time."""

RUN_S = 300.0
"""Longest a run on the digits takes on a busy machine."""
BUILD_S = 1800.0
ANSWER_S = 60.0
_SCAN_THREADS = 64
_LAST_PORT = 65_535
_OUTER_PORTS = ("GRPC_PORT", "HTTP_PORT", "METRICS_PORT", "PROMETHEUS_PORT", "ALERTMANAGER_PORT", "GRAFANA_PORT")


@dataclass(frozen=True)
class Stack:
    """Running containers."""

    environ: dict[str, str]
    """What make and docker are started with."""

    def compose(self, *words: str, timeout_s: float = ANSWER_S) -> str:
        """Run `docker compose` on it and return what it prints."""
        return _run(["docker", "compose", *words], self.environ, timeout_s, folder=DEPLOY)

    def make(self, *words: str) -> str:
        """Run `make` as it stands in the documentation."""
        return _run(["make", *words], self.environ, BUILD_S, folder=ROOT)

    def container(self, service: str) -> dict[str, Any]:
        """Return what docker knows of the container of a service."""
        found = self.compose("ps", "--all", "--quiet", service).split()
        return json.loads(_run(["docker", "inspect", *found], self.environ, ANSWER_S))[0]

    def services(self) -> list[str]:
        """Name the services that have a container."""
        return self.compose("ps", "--all", "--services").split()

    def addresses(self, service: str) -> list[str]:
        """List the addresses of a service, one in each network."""
        networks = self.container(service)["NetworkSettings"]["Networks"]
        return [network["IPAddress"] for network in networks.values() if network["IPAddress"]]

    def port(self, service: str, inner: int) -> int:
        """Tell on which port of this machine a port is published."""
        return int(self.compose("port", service, str(inner)).strip().rpartition(":")[2])


@contextmanager
def running_stack(
    name: str, files: list[str], profiles: str, secrets: Path, *, has_cache: bool = True
) -> Iterator[Stack]:
    """Build and start it by `make up`; containers, volumes and networks are removed at the end.

    Args:
        name: part of the name of the project.
        files: below deploy/; with compose.tls.yaml, secrets are made first.
        profiles: which services belong to it.
        secrets: folder for them.
        has_cache: whether what was built before may be used.
    """
    environ = {
        "COMPOSE_PROJECT_NAME": f"samix-{name}-{os.getpid()}",
        "COMPOSE_FILE": ":".join(files),
        "COMPOSE_PROFILES": profiles,
        "IMAGE_TAG": TAG,
        "SECRETS_FOLDER": str(secrets),
        **dict.fromkeys(_OUTER_PORTS, "0"),
    }
    stack = Stack(os.environ | environ)
    has_tls = "compose.tls.yaml" in files
    try:
        if not has_cache:
            stack.compose("build", "--no-cache", timeout_s=BUILD_S)
        if has_tls:
            stack.make("secrets")
        print(stack.make("up", *(["TLS=1"] if has_tls else [])))
        yield stack
    finally:
        stack.make("down", "ARGS=--volumes")


def wait_for(is_so: Callable[[], object]) -> None:
    """Ask again and again, for as long as a run may take."""
    deadline_s = time.monotonic() + RUN_S
    while not is_so():
        assert time.monotonic() < deadline_s, "it did not come to that"
        threading.Event().wait(0.5)


def open_ports(address: str) -> set[int]:
    """Try to connect to every TCP port of an address."""
    with ThreadPoolExecutor(_SCAN_THREADS) as threads:
        ports = range(1, _LAST_PORT + 1)
        return {port for port, is_open in zip(ports, threads.map(_knock(address), ports), strict=True) if is_open}


def _knock(address: str) -> Any:
    def is_open(port: int) -> bool:
        with socket.socket() as caller:
            caller.settimeout(ANSWER_S)
            return caller.connect_ex((address, port)) == 0

    return is_open


def _run(command: list[str], environ: dict[str, str], timeout_s: float, folder: Path | None = None) -> str:
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env=environ, timeout=timeout_s, cwd=folder
    )
    assert done.returncode == 0, f"{' '.join(command)} ended with {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout
