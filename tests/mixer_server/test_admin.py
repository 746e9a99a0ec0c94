"""The socket of the operators, and the verb `samix mixers` that speaks to it."""

import os
import re
import socket as sockets
import stat
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2
from serving import WAIT_S, Gate, ask, connect, health_of, random_call, request, sample, serve, serve_folder, tiny_mixer

from mixer_server import cli
from mixer_server.app import MixerServer
from mixer_server.config import ServerConfig
from mixer_server.hosting import admin_cli
from mixer_server.hosting.admin import SERVICE
from mixer_server.hosting.registry import Registry
from mixer_server.hosting.repository import State
from samix.mixer.v1 import admin_pb2 as admin
from samix.mixer.v1 import mixer_pb2 as pb
from samix.mixer.v1.admin_pb2_grpc import AdminServiceStub
from samix.mixing.artefact import load_mixer, save_artefact

ONE, TWO = tiny_mixer(seed=1), tiny_mixer(seed=2)
Status = grpc.StatusCode


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "mixers"
    path.mkdir()
    save_artefact(path / "tiny.safetensors", ONE, {})
    return path


@pytest.fixture
def socket(tmp_path: Path) -> Path:
    return tmp_path / "admin.sock"


@contextmanager
def operate(
    folder: Path, socket: Path, control: str = "explicit", **settings: Any
) -> Iterator[tuple[MixerServer, Any]]:
    with (
        serve_folder(folder, model_control=control, admin_socket=socket, **settings) as server,
        grpc.insecure_channel(f"unix:{socket}") as channel,
    ):
        yield server, AdminServiceStub(channel)


def load(stub: Any, name: str) -> pb.MixerInfo:
    return stub.LoadMixer(admin.LoadMixerRequest(name=name), timeout=WAIT_S).mixer


def listed(stub: Any) -> list[tuple[str, str, str]]:
    entries = stub.ListRepository(admin.ListRepositoryRequest(), timeout=WAIT_S).entries
    return [(entry.name, entry.version, admin.MixerState.Name(entry.state)) for entry in entries]


def refusal(call: Any, message: Any) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.RpcError) as caught:
        call(message, timeout=WAIT_S)
    assert isinstance(caught.value, grpc.Call)
    return caught.value.code(), caught.value.details() or ""


def test_mixer_is_loaded_while_others_are_served(folder: Path, socket: Path):
    """An explicit server starts with nothing, answers for what it is told to load, and unloads it again."""
    with operate(folder, socket) as (server, stub), connect(server.addresses["grpc"]) as client:
        before = listed(stub)
        code, _ = refusal(client.Mix, request(mixer="tiny"))
        info = load(stub, "tiny")
        reply = ask(client, random_call(mixer="tiny"))
        described = client.GetMixer(pb.GetMixerRequest(name="tiny"), timeout=WAIT_S).mixer
        ready = listed(stub)
        unloaded = stub.UnloadMixer(admin.UnloadMixerRequest(name="tiny"), timeout=WAIT_S)
        gone, _ = refusal(client.Mix, request(mixer="tiny"))

    assert code is gone is Status.NOT_FOUND
    assert before == [("tiny", "", "MIXER_STATE_UNLOADED")]
    assert ready == [("tiny", ONE.version, "MIXER_STATE_READY")]
    assert info == described
    assert reply.version == ONE.version
    assert unloaded.num_versions == 1


def test_versions_are_served_side_by_side(folder: Path, socket: Path):
    """After a new file was loaded requests that name a version get it, those that name none get the new one."""
    with operate(folder, socket) as (server, stub), connect(server.addresses["grpc"]) as client:
        load(stub, "tiny")
        save_artefact(folder / "tiny.safetensors", TWO, {})
        load(stub, "tiny")
        replies = [ask(client, random_call(mixer="tiny", version=version)) for version in ("", ONE.version)]
        stub.UnloadMixer(admin.UnloadMixerRequest(name="tiny", version=TWO.version), timeout=WAIT_S)
        newest = ask(client, random_call(mixer="tiny"))
        code, sentence = refusal(client.Mix, request(mixer="tiny", version=TWO.version))

    assert [reply.version for reply in replies] == [TWO.version, ONE.version]
    assert newest.version == ONE.version
    assert code is Status.NOT_FOUND
    assert f"has version {ONE.version} here, not '{TWO.version}'" in sentence


def test_accepted_requests_outlive_their_mixer(folder: Path, socket: Path):
    """A request that was accepted is answered by the version it found, also when that is unloaded meanwhile."""
    with operate(folder, socket) as (server, stub), connect(server.addresses["grpc"]) as client:
        load(stub, "tiny")
        gate = Gate(server.registry.find("tiny"))
        gate.shut()
        accepted = client.Mix.future(request(mixer="tiny"), timeout=WAIT_S)
        gate.wait_until_held()

        stub.UnloadMixer(admin.UnloadMixerRequest(name="tiny"), timeout=WAIT_S)
        hosted = server.registry.mixers
        gate.open()
        reply = accepted.result()

    assert hosted == []
    assert reply.version == ONE.version


def test_what_cannot_be_done_says_why(folder: Path, socket: Path):
    """Unknown names are NOT_FOUND; a file that cannot be loaded is INVALID_ARGUMENT with its reason, and listed."""
    (folder / "noise.safetensors").write_text("noise")
    with operate(folder, socket) as (server, stub):
        unknown = refusal(stub.LoadMixer, admin.LoadMixerRequest(name="../tiny"))
        damaged = refusal(stub.LoadMixer, admin.LoadMixerRequest(name="noise"))
        cold = refusal(stub.UnloadMixer, admin.UnloadMixerRequest(name="tiny"))
        nameless = refusal(stub.UnloadMixer, admin.UnloadMixerRequest())
        entries = stub.ListRepository(admin.ListRepositoryRequest(), timeout=WAIT_S).entries
        with grpc.insecure_channel(f"unix:{socket}") as channel:
            garbled = refusal(channel.unary_unary(f"/{SERVICE}/LoadMixer"), b"\xff")

    assert unknown[0] is Status.NOT_FOUND
    assert unknown[1] == "no file of the repository holds a mixer called '../tiny'; there is 'noise', 'tiny'"
    assert damaged[0] is Status.INVALID_ARGUMENT
    assert "noise.safetensors is not a whole safetensors file" in damaged[1]
    assert cold[0] is Status.NOT_FOUND
    assert nameless[0] is garbled[0] is Status.INVALID_ARGUMENT
    assert [(entry.name, entry.state) for entry in entries if entry.reason] == [("noise", admin.MIXER_STATE_FAILED)]
    assert sample(server, "mixer_model_loads_total", model="unknown", outcome="failed") == 1


def test_files_may_have_any_name(folder: Path, socket: Path):
    """A file whose name is no text is listed like any other, on the socket and on the status page."""
    Path(os.fsdecode(os.fsencode(folder) + b"/\xff.safetensors")).write_text("noise")
    with operate(folder, socket) as (server, stub):
        names = [name for name, *_ in listed(stub)]
        with urllib.request.urlopen(f"http://{server.addresses['http']}/", timeout=WAIT_S) as page:
            text = page.read().decode()

    assert names == ["?", "tiny"]
    assert re.search(r"<tr[^>]*><th[^>]*>\?</th><td[^>]*>unloaded</td>", text)


@pytest.mark.parametrize("control", ["none", "poll"])
def test_other_servers_take_no_orders(folder: Path, socket: Path, control: str):
    """A server that loads at its start only, or follows its folders, is listed and drained, but not told to load."""
    asked = threading.Event()
    with operate(folder, socket, control, on_drain=asked.set) as (_, stub):
        loading = refusal(stub.LoadMixer, admin.LoadMixerRequest(name="tiny"))
        unloading = refusal(stub.UnloadMixer, admin.UnloadMixerRequest(name="tiny"))
        states = listed(stub)
        stub.Drain(admin.DrainRequest(), timeout=WAIT_S)

    assert loading == unloading
    assert loading[0] is Status.INVALID_ARGUMENT
    assert f"--model-control {control}" in loading[1]
    assert states == [("tiny", ONE.version, "MIXER_STATE_READY")] * (control == "poll")
    assert asked.is_set()


def test_socket_is_private(folder: Path, socket: Path):
    """Only this user may open the socket, which goes with the server; clients' ports do not answer operators."""
    with operate(folder, socket) as (server, _), grpc.insecure_channel(server.addresses["grpc"]) as channel:
        mode = stat.S_IMODE(socket.stat().st_mode)
        outside = refusal(AdminServiceStub(channel).Drain, admin.DrainRequest())

    assert mode == 0o600
    assert outside[0] is Status.UNIMPLEMENTED
    assert not socket.exists()


def test_methods_are_those_of_the_contract(folder: Path, socket: Path):
    """Every method of the proto is answered."""
    service = admin.DESCRIPTOR.services_by_name["AdminService"]

    with operate(folder, socket), grpc.insecure_channel(f"unix:{socket}") as channel:
        calls = [channel.unary_unary(f"/{service.full_name}/{method.name}") for method in service.methods]
        codes = [call.future(b"", timeout=WAIT_S).code() for call in calls]

    assert len(codes) == 4
    assert Status.UNIMPLEMENTED not in codes


def test_starting_server_asks_for_patience(folder: Path):
    """As long as a server still reads its folders no name is unknown: callers are asked to come again."""
    reading, go_on = threading.Event(), threading.Event()

    def slowly(path: Path) -> Any:
        reading.set()
        assert go_on.wait(WAIT_S)
        return load_mixer(path)

    config = ServerConfig(mixers=(folder,), grpc_port=0, http_port=0, metrics_port=0, model_control="poll")
    server = MixerServer(config, Registry(is_filling=True), load=slowly)
    with ThreadPoolExecutor(1) as pool:
        started = pool.submit(server.start)
        try:
            assert reading.wait(WAIT_S)
            with connect(server.addresses["grpc"]) as client:
                early = refusal(client.Mix, request(mixer="tiny"))
                go_on.set()
                started.result(WAIT_S)
                late = refusal(client.Mix, request(mixer="ghost"))
                reply = ask(client, random_call(mixer="tiny"))
        finally:
            go_on.set()
            started.result(WAIT_S)
            server.stop()

    assert early == (Status.UNAVAILABLE, "this server is still reading its mixers")
    assert late[0] is Status.NOT_FOUND
    assert reply.version == ONE.version


def test_folder_is_polled(folder: Path):
    """A server that polls loads a file that appears, by itself."""
    name = health_pb2.HealthCheckRequest(service="model/other")
    with (
        serve_folder(folder, model_control="poll", repository_poll_s=0.02) as server,
        grpc.insecure_channel(server.addresses["grpc"]) as channel,
    ):
        watch = health_of(channel).Watch(name, timeout=WAIT_S)
        first = next(watch).status
        save_artefact(folder / "other.safetensors", tiny_mixer("other"), {})
        coming = [next(watch).status, next(watch).status]
        with connect(server.addresses["grpc"]) as client:
            reply = ask(client, random_call(mixer="other"))

    states = health_pb2.HealthCheckResponse
    assert first == states.SERVICE_UNKNOWN
    assert coming == [states.NOT_SERVING, states.SERVING]
    assert reply.mixer == "other"


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--model-control", "explicit"], "give --admin-socket PATH"),
        (["--model-control", "poll", "--mixers", "missing"], "there is no mixer at missing"),
        (["--model-control", "poll", "--mixers"], "name a folder of mixers"),
        (["--repository-poll-s", "0"], "repository-poll-s must be positive"),
        (["--keep-versions", "0"], "keep-versions must be at least 1, got 0"),
        (["--admin-socket", "x.sock", "--unix-socket", "x.sock"], "are both x.sock"),
    ],
)
def test_refuses_flags(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], flags: list[str], sentence: str
):
    """What cannot be served is one sentence and exit 2."""
    monkeypatch.chdir(tmp_path)

    status = cli.main(["--grpc-port", "0", "--http-port", "0", "--metrics-port", "0", "--mixers", ".", *flags])

    assert status == 2
    assert sentence in capsys.readouterr().err.splitlines()[-1]


def said(capsys: pytest.CaptureFixture[str], socket: Path, *arguments: str) -> tuple[int, str]:
    status = admin_cli.main([*arguments, "--admin-socket", str(socket)])
    output = capsys.readouterr()
    return status, output.out + output.err


def test_verb(folder: Path, socket: Path, capsys: pytest.CaptureFixture[str]):
    """`samix mixers` lists, loads, unloads and drains, and says what became of it."""
    asked = threading.Event()
    (folder / "noise.safetensors").write_text("noise")
    with operate(folder, socket, on_drain=asked.set):
        loaded = said(capsys, socket, "load", "tiny")
        refused = said(capsys, socket, "load", "noise")
        missing = said(capsys, socket, "load", "ghost")
        status, table = said(capsys, socket, "list")
        unloaded = said(capsys, socket, "unload", "tiny", "--version", ONE.version)
        drained = said(capsys, socket, "drain")

    rows = [line.split(maxsplit=4) for line in table.splitlines()]
    assert loaded == (0, f"loaded tiny@{ONE.version}\n")
    assert unloaded == (0, "unloaded tiny: 1 version\n")
    assert drained == (0, "draining\n")
    assert asked.is_set()
    assert refused[0] == 2
    assert "noise.safetensors is not a whole safetensors file" in refused[1]
    assert missing[0] == 1
    assert "no file of the repository holds a mixer called 'ghost'" in missing[1]
    assert status == 0
    assert rows[0] == ["NAME", "VERSION", "STATE", "FILE", "REASON"]
    assert rows[2] == ["tiny", ONE.version, "ready", str(folder / "tiny.safetensors")]
    assert rows[1][:3] == ["noise", "failed", str(folder / "noise.safetensors")]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["load"], "name the mixer: samix mixers load NAME"),
        (["list", "tiny"], "`samix mixers list` takes no name, got 'tiny'"),
        (["load", "tiny", "--version", "x"], "--version is for unload"),
        (["drain", "--timeout-s", "nan"], "timeout-s must be positive"),
        (["list"], "no server listens at"),
    ],
)
def test_verb_refuses(socket: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], sentence: str):
    """What makes no sense is refused before any server is asked."""
    status, output = said(capsys, socket, *arguments)

    assert status == 2
    assert sentence in output


def test_verb_without_a_server(folder: Path, socket: Path, capsys: pytest.CaptureFixture[str]):
    """A socket whose server died is one sentence and exit 1."""
    with sockets.socket(sockets.AF_UNIX) as dead:
        dead.bind(str(socket))

    status, output = said(capsys, socket, "list", "--timeout-s", "5")

    assert status == 1
    assert output.startswith(f"error: mixer at {socket}: ")
    assert "UNAVAILABLE" in output


@pytest.mark.slow
def test_drain_ends_the_program(folder: Path, socket: Path, capsys: pytest.CaptureFixture[str]):
    """An operator who drains, even twice, ends the program as SIGTERM does: in good order, with status 0."""
    flags = ["--mixers", str(folder), "--grpc-port", "0", "--http-port", "0", "--metrics-port", "0"]
    command = [sys.executable, "-m", "mixer_server", *flags, "--model-control", "poll", "--admin-socket", str(socket)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            with ThreadPoolExecutor(2) as pool, grpc.insecure_channel(f"unix:{socket}") as channel:
                drain = AdminServiceStub(channel).Drain
                list(pool.map(lambda _: drain(admin.DrainRequest(), timeout=WAIT_S), range(2)))
            _, errors = process.communicate(timeout=WAIT_S)
        finally:
            process.kill()

    assert f"admin={socket}" in line
    assert f"mixers=tiny@{ONE.version}" in line
    assert process.returncode == 0, errors
    assert "drained=True" in errors
    assert not socket.exists()


def test_mixer_without_a_file_is_listed():
    """A mixer that is hosted from the start, and comes from no file, is listed all the same."""
    with serve(ONE) as server:
        [entry] = server.repository.entries()

    assert (entry.name, entry.version, entry.file, entry.state) == ("tiny", ONE.version, "", State.READY)
