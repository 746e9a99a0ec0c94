"""`samix doctor` as a person runs it."""

import json
import subprocess
import sys
from collections.abc import Sequence

import pytest

from services.doctor import cli
from services.doctor.torch_pair import Probe

WHOLE = Probe(
    stages={
        "torch": {"version": "2.12.1", "cuda": None},
        "gpu": {"devices": [], "reason": "built without CUDA"},
        "torchvision": {"version": "0.27.1"},
        "nms": {"kept": [0, 2]},
    },
    end="",
)


@pytest.fixture(autouse=True)
def machine(monkeypatch):
    """A machine in order, whatever the one of the tests is like; torch is not imported anew for each test."""
    monkeypatch.setattr(cli, "probe_torch", lambda: WHOLE)
    monkeypatch.setattr("services.doctor.torch_pair.wanted_torch", lambda: "2.12.1")


def run(*flags: str) -> int:
    """Run the verb with free ports."""
    return cli.main([*("--grpc-port", "0", "--http-port", "0", "--metrics-port", "0"), *flags])


def test_each_line_begins_with_its_verdict(capsys):
    """There is a line for every check, and a last one that counts them."""
    status = run()

    lines = capsys.readouterr().out.splitlines()
    findings = [line for line in lines[:-1] if not line.lstrip().startswith("->")]
    assert {line.split()[0] for line in findings} <= {"ok", "warning", "failure", "unchecked"}
    assert status == int(any(line.startswith("failure") for line in findings))
    assert lines[-1].split(", ")[0] == f"{sum(line.startswith('ok') for line in findings)} ok"


def test_lines_come_before_torch_is_imported(capsys, monkeypatch):
    """Whoever waits for torch, which may take minutes, has read what is known without it."""
    told = []
    monkeypatch.setattr(cli, "probe_torch", lambda: told.append(capsys.readouterr().out) or WHOLE)

    run()

    assert "ok         installation" in told[0]


def test_a_failure_has_its_cure_and_status_1(capsys):
    """What will not work is followed by what to do, and ends the verb with 1."""
    status = run("--mixers", "none.safetensors")

    lines = capsys.readouterr().out.splitlines()
    failed = next(number for number, line in enumerate(lines) if line.startswith("failure    mixer none.safetensors"))
    assert status == 1
    assert lines[failed + 1].lstrip().startswith("-> give the path")


def test_json_holds_the_same(capsys):
    """--json prints one object with all findings and their numbers."""
    status = run("--json", "--data", "none-*.tar")

    told = json.loads(capsys.readouterr().out)
    verdicts = [finding["verdict"] for finding in told["findings"]]
    assert status == 1
    assert {name: verdicts.count(name) for name in ("ok", "warning", "failure", "unchecked")} == {
        name: told[name] for name in ("ok", "warning", "failure", "unchecked")
    }
    assert all(finding["cure"] for finding in told["findings"] if finding["verdict"] != "ok")


def test_a_broken_torch_leaves_the_rest(capsys, monkeypatch):
    """Where torch is broken mixers are unchecked, and all else is looked at."""
    monkeypatch.setattr(cli, "probe_torch", lambda: Probe(stages={}, end="killed by signal 11"))

    status = run("--mixers", "a.safetensors")

    out = capsys.readouterr().out
    assert status == 1
    assert "failure    torch: cannot be imported (killed by signal 11)" in out
    assert "unchecked  mixer a.safetensors: needs torch" in out
    assert "ok         grpc port" in out


def test_a_check_that_breaks_off_does_not_end_the_others(capsys, monkeypatch):
    """A bug in one check is a failure of that one."""

    def broken() -> None:
        raise KeyError("surprise")

    monkeypatch.setattr(cli, "check_malloc", broken)

    status = run()

    out = capsys.readouterr().out
    assert status == 1
    assert "failure    malloc: the check broke off (KeyError: 'surprise')" in out
    assert " rank ports: " in out


@pytest.mark.parametrize(
    "flags",
    [
        ["--connect", "localhost"],
        ["--connect", "a:1,,b:1"],
        ["--grpc-port", "70000"],
        ["--nosuch"],
        ["--device", "tpu"],
    ],
)
def test_wrong_use_ends_with_2(flags: Sequence[str], capsys):
    """Flags that make no sense are refused before anything is checked."""
    try:
        status = run(*flags)
    except SystemExit as ended:
        status = ended.code

    assert status == 2
    assert "error: " in capsys.readouterr().err


CLIENT_ONLY = """
import sys

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"tyro", "braceexpand", "PIL", "simplejpeg", "prometheus_client", "tqdm"}:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Missing())
from services.doctor import cli
from services.doctor.torch_pair import Probe
cli.probe_torch = lambda: Probe(stages={}, end="")
ports = ["--grpc-port", "0", "--http-port", "0", "--metrics-port", "0"]
sys.exit(cli.main([*ports, "--data", "none-*.tar", "--connect", "127.0.0.1:1"]))
"""


def test_a_client_only_installation_is_told_what_it_lacks():
    """Without the extras the doctor runs, and says of shards which package it needs to check them."""
    done = subprocess.run([sys.executable, "-c", CLIENT_ONLY], capture_output=True, text=True, check=False)

    assert done.returncode == 1, done.stderr
    assert "unchecked  shards none-*.tar: needs the package braceexpand" in done.stdout
    assert "-> pip install 'samix-service[trainer]'" in done.stdout
    assert "failure    server 127.0.0.1:1: cannot be reached" in done.stdout
