"""What the doctor says of ports, shards, mixers and servers it is told of."""

import json
import shutil
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from serving import serve, tiny_mixer
from shard_making import write_noise_shards
from shard_server import serve_shards

from mixer_server.app import MixerServer
from samix.mixing.artefact import save_artefact
from services.doctor.findings import Finding
from services.doctor.mixers import check_mixers
from services.doctor.ports import (
    RANK_PORTS,
    check_grpc_port,
    check_http_port,
    check_metrics_port,
    check_rank_ports,
)
from services.doctor.servers import check_servers
from services.doctor.shards import check_shards
from services.shards.index_file import INDEX_NAME

HOST = "127.0.0.1"


@pytest.fixture
def stranger() -> Iterator[int]:
    """A port on which somebody else listens, who never answers."""
    with socket.create_server((HOST, 0)) as listening:
        yield listening.getsockname()[1]


@pytest.fixture(scope="module")
def server() -> Iterator[MixerServer]:
    with serve(tiny_mixer()) as running:
        yield running


def port_of(server: MixerServer, door: str) -> int:
    return int(server.addresses[door].rpartition(":")[2])


@pytest.mark.parametrize(
    ("check", "door"), [(check_grpc_port, "grpc"), (check_http_port, "http"), (check_metrics_port, "metrics")]
)
def test_ports_that_our_server_has(server, check, door):
    """A port on which a server of ours listens already is in order."""
    finding = check(HOST, port_of(server, door))

    assert finding.verdict == "ok"
    assert "already" in finding.sentence


@pytest.mark.parametrize(
    ("check", "verdict"), [(check_grpc_port, "failure"), (check_http_port, "failure"), (check_metrics_port, "warning")]
)
def test_ports_that_others_have(stranger, monkeypatch, check, verdict):
    """A port that is taken stops the server, except that of its metrics."""
    monkeypatch.setattr("services.doctor.ports._ANSWER_S", 0.2)

    finding = check(HOST, stranger)

    assert finding.verdict == verdict
    assert f"{HOST}:{stranger}" in finding.sentence
    assert finding.cure


def test_rank_ports(stranger, monkeypatch):
    """Ports of ranks that others have are listed, for ranks then take other ones."""
    monkeypatch.setattr("services.doctor.ports._ANSWER_S", 0.2)
    monkeypatch.setattr("services.doctor.ports.RANK_PORTS", range(stranger, stranger + 1))

    finding = check_rank_ports(HOST)

    assert (finding.verdict, RANK_PORTS[0]) == ("warning", 8010)
    assert str(stranger) in finding.sentence


@pytest.fixture
def shards(tmp_path: Path) -> str:
    """Ten small shards with an index."""
    pattern = write_noise_shards(tmp_path, [3] * 10)
    entries = [
        {"shard": file.name, "samples": 3, "bytes": file.stat().st_size} for file in sorted(tmp_path.glob("*.tar"))
    ]
    (tmp_path / INDEX_NAME).write_text(json.dumps({"splits": {"train": entries}}))
    return pattern


def test_shards_in_order(shards):
    """Samples are counted, and eight of ten shards looked into."""
    finding = check_shards(shards)

    assert finding.verdict == "ok"
    assert "30 samples in 10 shards; sizes match the index, the first picture of 8 of them" in finding.sentence


def test_shards_without_an_index(shards, tmp_path):
    """Shards without an index are read all the same."""
    (tmp_path / INDEX_NAME).unlink()

    finding = check_shards(shards)

    assert finding.verdict == "ok"
    assert "there is no index" in finding.sentence


def spoil_missing(folder: Path) -> None:
    (folder / "noise-000004.tar").unlink()


def spoil_size(folder: Path) -> None:
    with (folder / "noise-000004.tar").open("ab") as file:
        file.write(bytes(512))


def spoil_index(folder: Path) -> None:
    (folder / INDEX_NAME).write_text("{")


def spoil_picture(folder: Path) -> None:
    file = folder / "noise-000000.tar"
    file.write_bytes(file.read_bytes().replace(b"IDAT", b"JDAT"))


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (spoil_missing, "noise-000004.tar is not there"),
        (spoil_size, "its index says"),
        (spoil_index, "is not JSON"),
        (spoil_picture, "noise-000000.tar"),
        (lambda folder: shutil.rmtree(folder), "no shard matches"),
    ],
)
def test_shards_that_are_damaged(shards, tmp_path, spoil, said):
    """What is missing, of another size than its index says, or not to be decoded is a failure with its cure."""
    spoil(tmp_path)

    finding = check_shards(shards)

    assert finding.verdict == "failure"
    assert said in finding.sentence
    assert finding.cure


def test_remote_shards(shards, tmp_path):
    """Remote shards are asked for without fetching them; without an index that is warned of."""
    with serve_shards(tmp_path) as web:
        listed = check_shards(f"{web.url}/noise-{{000000..000009}}.tar")
        missing = check_shards(f"{web.url}/noise-{{000000..000010}}.tar")
        (tmp_path / INDEX_NAME).unlink()
        unlisted = check_shards(f"{web.url}/noise-{{000000..000009}}.tar")

    assert [finding.verdict for finding in (listed, missing, unlisted)] == ["ok", "failure", "warning"]
    assert "30 samples in 10 shards" in listed.sentence
    assert "404" in missing.sentence


def test_a_command_is_not_run(tmp_path):
    """`pipe:` addresses are left to `samix shards --check`."""
    finding = check_shards(f"pipe:touch {tmp_path}/ran")

    assert finding.verdict == "unchecked"
    assert not (tmp_path / "ran").exists()


def test_mixers(tmp_path):
    """A file and a folder are loaded; a file that is none, and a folder of none, are failures."""
    save_artefact(tmp_path / "tiny.safetensors", tiny_mixer(), {})
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken.safetensors").write_text("{}")

    whole = check_mixers(tmp_path / "tiny.safetensors")
    folder = check_mixers(tmp_path)
    others = [*check_mixers(tmp_path / "empty"), *check_mixers(tmp_path / "none.safetensors")]

    assert [finding.verdict for finding in whole] == ["ok"]
    assert sorted(finding.verdict for finding in folder) == ["failure", "ok"]
    assert [finding.verdict for finding in others] == ["failure", "failure"]
    assert all(finding.cure for finding in others)


def test_a_server_in_order(server):
    """Health, mixers with versions, distance and clock of a server are told."""
    findings = check_servers([server.addresses["grpc"]], port_of(server, "http"))

    assert [finding.verdict for finding in findings] == ["ok"] * 3, findings
    told = " ".join(finding.sentence for finding in findings)
    assert "ms there and back" in told
    assert "tiny@" in told
    assert "within 2 s" in told


def test_a_clock_that_nobody_tells(server, stranger):
    """Without its status page the clock of a server is unchecked, with the flag that helps."""
    findings = check_servers([server.addresses["grpc"]], port_of(server, "grpc"))

    assert [finding.verdict for finding in findings] == ["ok", "ok", "unchecked"]
    assert "--server-http-port" in findings[-1].cure


@pytest.mark.parametrize(("shift_s", "way"), [(60, "behind"), (-60, "ahead of")])
def test_a_clock_that_is_wrong(server, shift_s, way):
    """A server whose clock is a minute off is warned of, with the direction."""
    finding = check_servers([server.addresses["grpc"]], port_of(server, "http"), clock=lambda: time.time() + shift_s)[
        -1
    ]

    assert finding.verdict == "warning"
    assert f" s {way} this one" in finding.sentence
    assert "NTP" in finding.cure


def test_a_dead_server():
    """A server that is gone is one failure, and no more is asked of it."""
    with serve(tiny_mixer()) as gone:
        address = gone.addresses["grpc"]

    (finding,) = check_servers([address], 1)

    assert finding.verdict == "failure"
    assert "cannot be reached" in finding.sentence


def test_replicas_that_disagree(server):
    """Servers with different versions of one mixer are told, for a run would mix by both."""
    with serve(tiny_mixer(seed=1)) as other:
        findings = check_servers([server.addresses["grpc"], other.addresses["grpc"]], port_of(server, "http"))

    different: list[Finding] = [finding for finding in findings if finding.check == "versions of tiny"]
    assert [finding.verdict for finding in different] == ["warning"]
