"""Tell a running mixer server which mixers to load and unload, or to drain."""

import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import grpc
import tyro

from mixer_server.limits import check_seconds
from samix.errors import ConfigError
from samix.mixer.v1 import admin_pb2 as admin
from samix.mixer.v1.admin_pb2_grpc import AdminServiceStub
from samix.status import from_rpc_error
from services.cli import program
from services.config import parse_config

_HEADINGS = ("NAME", "VERSION", "STATE", "FILE", "REASON")


@dataclass(frozen=True, kw_only=True, slots=True)
class MixersConfig:
    """List the mixers of a running server, load or unload one (--model-control explicit), or take it out of service."""

    action: tyro.conf.Positional[Literal["list", "load", "unload", "drain"]]
    """What to do."""
    name: tyro.conf.Positional[str] = ""
    """The mixer to load or unload."""
    admin_socket: Path
    """Where the server listens for its operators: its own --admin-socket."""
    version: str = ""
    """The version to unload; without it all are."""
    timeout_s: float = 300.0
    """Longest to wait for the server, in seconds; a mixer is loaded and warmed up in this time."""

    def __post_init__(self) -> None:
        takes_name = self.action in ("load", "unload")
        if takes_name and not self.name:
            raise ConfigError(f"name the mixer: samix mixers {self.action} NAME; `samix mixers list` shows all")
        if self.name and not takes_name:
            raise ConfigError(f"`samix mixers {self.action}` takes no name, got {self.name!r}")
        if self.version and self.action != "unload":
            raise ConfigError(f"--version is for unload, got it for {self.action}; the newest file is loaded")
        check_seconds("timeout-s", self.timeout_s)


@program
def main(argv: Sequence[str] | None = None) -> None:
    """Ask the server and say what it did."""
    config = parse_config(MixersConfig, "mixers", argv)
    if not config.admin_socket.is_socket():
        raise ConfigError(f"no server listens at {config.admin_socket}; start one with --admin-socket PATH")
    actions = {"list": _list, "load": _load, "unload": _unload, "drain": _drain}
    # In full: gRPC would take unix:a/b for a relative path too, but not unix:a.
    with grpc.insecure_channel(f"unix:{os.path.abspath(config.admin_socket)}") as channel:  # noqa: PTH100 - keeps links
        print(actions[config.action](AdminServiceStub(channel), config))


def _list(stub: AdminServiceStub, config: MixersConfig) -> str:
    entries = _ask(stub.ListRepository, admin.ListRepositoryRequest(), config).entries
    rows = [(entry.name, entry.version, _state(entry.state), entry.file, entry.reason) for entry in entries]
    return _table([_HEADINGS, *rows])


def _load(stub: AdminServiceStub, config: MixersConfig) -> str:
    mixer = _ask(stub.LoadMixer, admin.LoadMixerRequest(name=config.name), config).mixer
    return f"loaded {mixer.name}@{mixer.version}"


def _unload(stub: AdminServiceStub, config: MixersConfig) -> str:
    request = admin.UnloadMixerRequest(name=config.name, version=config.version)
    num_versions = _ask(stub.UnloadMixer, request, config).num_versions
    return f"unloaded {config.name}: {num_versions} version{'s' * (num_versions != 1)}"


def _drain(stub: AdminServiceStub, config: MixersConfig) -> str:
    _ask(stub.Drain, admin.DrainRequest(), config)
    return "draining"


def _ask(method: Callable[..., Any], request: Any, config: MixersConfig) -> Any:
    try:
        return method(request, timeout=config.timeout_s)
    except grpc.RpcError as error:
        raise from_rpc_error(error, str(config.admin_socket)) from error


def _state(state: admin.MixerState) -> str:
    return admin.MixerState.Name(state).removeprefix("MIXER_STATE_").lower()


def _table(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)


if __name__ == "__main__":
    sys.exit(main())
