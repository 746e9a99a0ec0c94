"""`samix bench wan`: packets come late or not at all, two hosts train through that, and what it refuses."""

import os
import random
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from benchmarks.wan import main
from benchmarks.wan_network import Weather, open_network
from benchmarks.wan_relay import Relay
from benchmarks.wan_report import RunFigures, table

ROOT = Path(__file__).parents[2]
ADDRESSES = (bytes((10, 77, 0, 1)), bytes((10, 77, 0, 2)))


def may_make_hosts() -> bool:
    """Say whether this machine lets us make network namespaces and devices: root of a container often may not."""
    programs = [shutil.which(name) for name in ("ip", "unshare")]
    if os.geteuid() != 0 or not Path("/dev/net/tun").exists() or None in programs:
        return False
    attempt = ["unshare", "--net", "--mount", "ip", "tuntap", "add", "dev", "wan-probe", "mode", "tun"]
    return subprocess.run(attempt, capture_output=True, timeout=20, check=False).returncode == 0


needs_root = pytest.mark.skipif(
    not may_make_hosts(), reason="needs root, /dev/net/tun, iproute2, and the right to make network namespaces"
)


class Clock:
    """Seconds, as a test sets them."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


class Wires:
    """Two pairs of sockets that stand in for devices: `near` are the relay's ends."""

    def __init__(self) -> None:
        pairs = [socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM) for _ in ADDRESSES]
        self.near = [near for near, _ in pairs]
        self.far = [far for _, far in pairs]
        for end in (*self.near, *self.far):
            end.setblocking(False)

    def close(self) -> None:
        for end in (*self.near, *self.far):
            end.close()


@pytest.fixture
def wires() -> Iterator[Wires]:
    with closing(Wires()) as made:
        yield made


def packet(target: bytes, body: bytes = b"") -> bytes:
    return bytes((0x45, *[0] * 15)) + target + body


def relay_of(wires: Wires, clock: Clock, **weather: float) -> Relay:
    devices = {address: end.fileno() for address, end in zip(ADDRESSES, wires.near, strict=True)}
    settings: dict = {"delay_s": 0.0, "loss": 0.0} | weather
    return Relay(devices, rng=random.Random(0), clock=clock, **settings)


def turn(relay: Relay) -> None:
    """Let the relay look once."""
    over = iter((False, True))
    relay.run(lambda: next(over))


def received(wires: Wires, host: int) -> list[bytes]:
    found: list[bytes] = []
    while True:
        try:
            found.append(wires.far[host].recv(65_535))
        except BlockingIOError:
            return found


def test_packets_reach_their_host_in_order(wires: Wires):
    """A packet goes to the host it is for, after those sent before it."""
    relay = relay_of(wires, Clock())

    for number in range(5):
        wires.far[0].send(packet(ADDRESSES[1], bytes((number,))))
    wires.far[1].send(packet(ADDRESSES[0]))
    turn(relay)

    assert [found[-1] for found in received(wires, 1)] == [0, 1, 2, 3, 4]
    assert received(wires, 0) == [packet(ADDRESSES[0])]
    assert relay.carried.packets == 6


def test_packets_are_as_late_as_was_said(wires: Wires):
    """Nothing is delivered before its time, and everything at it."""
    clock = Clock()
    relay = relay_of(wires, clock, delay_s=0.02)
    wires.far[0].send(packet(ADDRESSES[1]))

    turn(relay)
    clock.now_s = 0.019
    early = received(wires, 1)
    clock.now_s = 0.02
    turn(relay)

    assert early == []
    assert received(wires, 1) == [packet(ADDRESSES[1])]


def test_as_many_are_lost_as_was_said(wires: Wires):
    """About the share that was asked for is lost, and all that is lost is counted."""
    relay = relay_of(wires, Clock(), loss=0.1)
    arrived = 0

    for _ in range(200):
        for _ in range(10):
            wires.far[0].send(packet(ADDRESSES[1]))
        turn(relay)
        arrived += len(received(wires, 1))

    assert arrived + relay.carried.lost == 2000
    assert 140 <= relay.carried.lost <= 260


@pytest.mark.parametrize("data", [packet(bytes((224, 0, 0, 1))), bytes((0x60, *[0] * 39))], ids=["multicast", "ipv6"])
def test_chatter_goes_nowhere(wires: Wires, data: bytes):
    """What is for no host in particular is dropped, and not counted as lost."""
    relay = relay_of(wires, Clock())
    wires.far[0].send(data)

    turn(relay)

    assert received(wires, 1) == []
    assert (relay.carried.packets, relay.carried.lost) == (0, 0)


@pytest.mark.slow
@needs_root
def test_hosts_meet_through_the_relay_alone():
    """A ping from one host to another takes twice the delay; afterwards no host is left."""
    with open_network(2, Weather(delay_s=0.05, loss=0.0), congestion="reno") as network:
        here, there = network.hosts
        ping = ["ip", "netns", "exec", here.namespace, sys.executable, "-c", _PING, there.address]
        pong = ["ip", "netns", "exec", there.namespace, sys.executable, "-c", _PONG, there.address]
        with subprocess.Popen(pong, stdout=subprocess.PIPE) as answer:  # ends by itself, answered or not
            assert answer.stdout is not None
            assert answer.stdout.readline() == b"ready\n"
            took = subprocess.run(ping, capture_output=True, text=True, timeout=30, check=True)

    assert float(took.stdout) >= 0.1
    assert network.carried.packets >= 2
    left = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=True).stdout
    assert here.namespace not in left


_PONG = """
import socket, sys
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as end:
    end.bind((sys.argv[1], 9000)); end.settimeout(20)
    print("ready", flush=True)
    end.sendto(*end.recvfrom(10))
"""
_PING = """
import socket, sys, time
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as end:
    end.settimeout(20); began = time.monotonic()
    end.sendto(b"?", (sys.argv[1], 9000)); end.recv(10)
    print(time.monotonic() - began)
"""


@pytest.mark.slow
@pytest.mark.timeout(600)
@needs_root
def test_a_run_ends_over_a_bad_network(tmp_path: Path):
    """Two hosts train by a mixer on a third while packets are late and lost: the run ends, with its figures."""
    flags = ["--epochs", "1", "--ways", "jpeg", "--weather", "bad", "--delay-ms", "5"]
    command = [sys.executable, "-m", "benchmarks.wan", *flags, "--json", str(tmp_path / "wan.json")]

    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as run:
        limit = threading.Timer(540, run.terminate)  # unlike a kill it takes the hosts, and what runs there, along
        limit.start()
        try:
            told = run.communicate()[0]
        finally:
            limit.cancel()
            limit.join()

    assert run.returncode == 0, told
    assert "jpeg" in told
    assert (tmp_path / "wan.json").exists()


def test_others_than_root_are_told(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """Who may not make namespaces is told what to do."""
    monkeypatch.setattr(os, "geteuid", lambda: 1000)

    status = main([])

    assert status == 2
    assert "network namespaces need root, this is another user; run it as root" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--loss", "1"], "loss must be at least 0 and below 1, got 1.0"),
        (["--nodes", "0"], "nodes must lie in 1..8, got 0"),
        (["--delay-ms", "-1"], "delay-ms must lie in 0..10000, got -1.0"),
        (["--train", "a.tar"], "train and val must both be given, or neither"),
        (["--json", "x.txt"], "json must name a file that ends in .json"),
    ],
)
def test_what_cannot_be_is_refused(flags: list[str], sentence: str, capsys: pytest.CaptureFixture[str]):
    """Wrong flags are refused before anything starts."""
    status = main(flags)

    assert status == 2
    assert sentence in capsys.readouterr().err


def test_crowded_relays_are_told():
    """A table says when the relay itself dropped packets, since its figures then mean something else."""
    run = RunFigures(
        weather="bad", way="raw", steps=22, seconds=60, step_s=2.5, slow_step_s=4.0, wait_s=0.001, wait_share=0.01,
        fallbacks=0, retries=1, sent_mb=1.5, top1=0.3, packets=990, lost=10, crowded=3, latest_ms=2.0,
    )  # fmt: skip

    text = table([run])

    assert "raw         22     2,500 ms    4,000 ms" in text
    assert "   1.00%" in text
    assert "3 packets were dropped for want of room: bad, raw" in text
