"""Where a client connects, and in which process."""

import subprocess
import sys
from concurrent import futures
from pathlib import Path

import grpc
import pytest
import torch
from scripted_server import ScriptedServicer, contrast_logits, serving

from samix.client.channel import check_targets
from samix.client.remote import connect
from samix.errors import InputError
from samix.mixer.v1 import mixer_pb2_grpc

FORKING = """
import multiprocessing, sys
import torch
from samix import errors
from samix.client.remote import connect

torch.set_num_threads(1)
images = torch.zeros(2, 3, 8, 8, dtype=torch.uint8)

def mix(remote):
    for _ in range(2):  # as often as it is tried
        try:
            print(tuple(remote.mix(images, seed=1).images.shape), flush=True)
        except errors.InputError as error:
            print(error, flush=True)
    remote.close()

def fork(remote):
    worker = multiprocessing.get_context("fork").Process(target=mix, args=(remote,))
    worker.start()
    worker.join(30)
    print(worker.exitcode, flush=True)

remote = connect(sys.argv[1], encoder_size=int(sys.argv[2]))
fork(remote)
mix_here = remote.mix(images, seed=1)
fork(remote)
print(tuple(remote.mix(images, seed=1).images.shape))
"""


@pytest.mark.parametrize("encoder_size", [8, 4])  # in the caller's thread, and in others
def test_fork(encoder_size: int) -> None:
    """A mixer made before a fork works in the child; one used before is refused there and goes on in the parent."""
    with serving(contrast_logits) as (_, target):
        program = [sys.executable, "-c", FORKING, target, str(encoder_size)]
        done = subprocess.run(program, capture_output=True, text=True, timeout=100, check=False)

    mixed = "(2, 3, 8, 8)"
    refused = f"the mixer at {target} was used before this process was forked; connect in the worker"
    assert done.stdout.splitlines() == [mixed, mixed, "0", refused, refused, "0", mixed], done.stderr


def test_unix_socket(tmp_path: Path) -> None:
    """A mixer can be reached through a unix socket."""
    server = grpc.server(futures.ThreadPoolExecutor(1))
    mixer_pb2_grpc.add_MixerServiceServicer_to_server(ScriptedServicer(contrast_logits), server)
    server.add_insecure_port(f"unix://{tmp_path}/mixer.sock")
    server.start()

    with connect(f"unix://{tmp_path}/mixer.sock") as remote:
        mixed = remote.mix(torch.zeros(2, 3, 8, 8), seed=1)

    server.stop(0).wait()
    assert mixed.images.shape == (2, 3, 8, 8)


def test_proxies_are_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """A proxy for downloads is not used to reach a mixer."""
    for name in ("http_proxy", "https_proxy", "grpc_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    for name in ("no_proxy", "no_grpc_proxy"):
        monkeypatch.delenv(name, raising=False)

    with serving(contrast_logits) as (_, target), connect(target) as remote:
        mixed = remote.mix(torch.zeros(2, 3, 8, 8), seed=1)

    assert mixed.images.shape == (2, 3, 8, 8)


def test_connecting_sends_nothing() -> None:
    """Connecting to nowhere is fine until something is mixed."""
    with connect("nowhere.invalid:8001"):
        pass


@pytest.mark.parametrize(
    "target",
    [
        "localhost:8001",
        "10.0.0.7:1",
        "[::1]:65535",
        "mixer-0.mixers_a:8001",
        "dns:///mixers:8001",
        "unix:///run/m.sock",
    ],
)
def test_addresses(target: str) -> None:
    """Hosts with a port, names for DNS and unix sockets are addresses."""
    assert check_targets(target) == [target]


@pytest.mark.parametrize(
    "target",
    ["", "localhost", ":8001", "host:http", "host:0", "host:65536", "http://host:8001", "unix://run/m.sock", "a b:1",
     "host:8001/", "unix:///", "::1:8001"],
)  # fmt: skip
def test_malformed_addresses(target: str) -> None:
    """Anything else is refused with its value and the forms that work."""
    with pytest.raises(InputError, match="host:port, dns:///name:port or unix:///path, got") as caught:
        connect(target)

    assert repr(target) in str(caught.value)
