"""Hosts in network namespaces of their own, which reach one another through a relay alone. Linux, and root."""

import fcntl
import os
import struct
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.wan_relay import Carried
from samix.errors import ConfigError
from services.cli import ProgramFailed

DEVICE = "wan0"
"""Name of the network device on every host."""
MTU = 1500

_SET_DEVICE = 0x400454CA  # TUNSETIFF of linux/if_tun.h
_TUN_WITHOUT_HEADER = 0x1001  # IFF_TUN | IFF_NO_PI
_CLONE_DEVICE = Path("/dev/net/tun")
_COMMAND_S = 20.0
_SUBNET = "10.77.0.0/24"
_QUEUE_PACKETS = 10_000


@dataclass(frozen=True, kw_only=True, slots=True)
class Weather:
    """What happens to packets between any two hosts, each way."""

    delay_s: float
    """How late they are."""
    loss: float
    """Share that is lost, in [0, 1)."""
    seed: int = 0
    """Decides which."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Host:
    """One namespace."""

    namespace: str
    """Its name for `ip netns`."""
    address: str
    """Where the others reach it."""


@dataclass(kw_only=True, slots=True)
class Network:
    """Hosts, and what the relay between them did, once the network is gone."""

    hosts: Sequence[Host]
    carried: Carried = field(default_factory=Carried)


def check_possible() -> None:
    """Refuse what this machine cannot do.

    Raises:
        ConfigError: with the reason.
    """
    if os.geteuid() != 0:
        raise ConfigError(
            "network namespaces need root, this is another user; run it as root, or in a container that is"
        )
    if not _CLONE_DEVICE.exists():
        raise ConfigError(f"there is no {_CLONE_DEVICE}; load the module tun, or give the container that device")
    try:
        _ip("netns", "list")
    except FileNotFoundError as error:
        raise ConfigError("there is no program `ip`; install iproute2") from error


@contextmanager
def open_network(num_hosts: int, weather: Weather, *, congestion: str) -> Iterator[Network]:
    """Make hosts and the relay between them; all is gone after the block.

    Args:
        num_hosts: how many, at most 200.
        weather: between any two of them.
        congestion: control of TCP on all of them, such as cubic.

    Raises:
        ProgramFailed: if the system refuses a step.
    """
    hosts = [
        Host(namespace=f"samix-{os.getpid()}-{number}", address=f"10.77.0.{number + 1}") for number in range(num_hosts)
    ]
    network = Network(hosts=hosts)
    with ExitStack() as opened:
        devices = {host.address: opened.enter_context(_open_host(host, congestion)) for host in hosts}
        opened.enter_context(_relaying(devices, weather, network))
        yield network


@contextmanager
def _open_host(host: Host, congestion: str) -> Iterator[int]:
    """Make a namespace with a device; yields the device's other end, where its packets come out."""
    with ExitStack() as opened:
        _ip("netns", "add", host.namespace)
        opened.callback(_ip, "netns", "del", host.namespace)
        descriptor = os.open(_CLONE_DEVICE, os.O_RDWR | os.O_NONBLOCK)
        opened.callback(os.close, descriptor)
        name = f"swan{os.getpid() % 100_000}-{host.address.rpartition('.')[2]}"  # until it is in its namespace
        fcntl.ioctl(descriptor, _SET_DEVICE, struct.pack("16sH22x", name.encode(), _TUN_WITHOUT_HEADER))
        _ip("link", "set", name, "netns", host.namespace, "name", DEVICE)
        inside = ("-n", host.namespace)
        _ip(*inside, "link", "set", "lo", "up")
        _ip(*inside, "address", "add", f"{host.address}/24", "dev", DEVICE)
        _ip(*inside, "link", "set", DEVICE, "mtu", str(MTU), "txqueuelen", str(_QUEUE_PACKETS), "up")
        # By route: the setting of a namespace takes only what its machine allows to users.
        _ip(*inside, "route", "replace", _SUBNET, "dev", DEVICE, "congctl", congestion)
        yield descriptor


@contextmanager
def _relaying(devices: dict[str, int], weather: Weather, network: Network) -> Iterator[None]:
    flags = ["--delay-s", str(weather.delay_s), "--loss", str(weather.loss), "--seed", str(weather.seed)]
    ends = [f"{address}={descriptor}" for address, descriptor in devices.items()]
    command = [sys.executable, "-m", "benchmarks.wan_relay", *flags, *ends]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, pass_fds=list(devices.values())) as relay:
        assert relay.stdout is not None
        try:
            if relay.stdout.readline() != "ready\n":
                raise ProgramFailed("the relay between the hosts did not start")
            yield
        finally:
            relay.terminate()
            told = relay.stdout.read().split()
    if len(told) == 4:
        packets, lost, crowded = map(int, told[:3])
        network.carried = Carried(packets=packets, lost=lost, crowded=crowded, latest_s=float(told[3]))


def _ip(*words: str) -> None:
    done = subprocess.run(["ip", *words], capture_output=True, text=True, timeout=_COMMAND_S, check=False)
    if done.returncode:
        raise ProgramFailed(f"`ip {' '.join(words)}` failed: {done.stderr.strip()}")
