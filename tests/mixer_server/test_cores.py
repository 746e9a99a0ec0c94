import os
from pathlib import Path

import pytest

from mixer_server.engine.cores import choose_lanes, threads_per_worker, usable_cores
from samix.errors import ConfigError

NOWHERE = Path("/nowhere")


@pytest.fixture
def bound(monkeypatch: pytest.MonkeyPatch) -> None:
    """This process is bound to processors 0 to 3."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2, 3}, raising=False)


def siblings_in(folder: Path, *lists: str) -> str:
    """Describe processors by the threads of their cores."""
    for number, text in enumerate(lists):
        (folder / f"cpu{number}").write_text(f"{text}\n")
    return f"{folder}/cpu{{}}"


@pytest.mark.usefixtures("bound")
def test_threads_of_one_core_count_once(tmp_path: Path):
    """Two hardware threads of a core are one core; where nothing is known of them each processor is."""
    pairs = siblings_in(tmp_path, "0,2", "1,3", "0,2", "1,3")

    assert usable_cores(NOWHERE, pairs) == 2
    assert usable_cores(NOWHERE, f"{NOWHERE}/{{}}") == 4


@pytest.mark.usefixtures("bound")
@pytest.mark.parametrize(
    ("quota", "cores"), [("max 100000", 4), ("200000 100000", 2), ("50000 100000", 1), ("900000 100000", 4), ("", 4)]
)
def test_a_container_may_use_its_share(tmp_path: Path, quota: str, cores: int):
    """A container with less processor time than processors counts whole cores of it, at least one."""
    (tmp_path / "cpu.max").write_text(quota)

    assert usable_cores(tmp_path / "cpu.max", f"{NOWHERE}/{{}}") == cores


def test_workers_share_the_cores():
    """Each worker has its part of the cores, and a thread in any case."""
    assert threads_per_worker(1) == usable_cores()
    assert threads_per_worker(256) == 1


@pytest.mark.parametrize(("wanted", "makes_ahead", "lanes"), [(0, False, 1), (3, False, 3), (3, True, 3), (1, True, 1)])
def test_lanes_that_were_asked_for(wanted: int, makes_ahead: bool, lanes: int):
    """A number of lanes that was asked for is taken; unless something is made ahead, one is enough."""
    assert choose_lanes(wanted, "cpu", makes_ahead=makes_ahead) == lanes


@pytest.mark.parametrize(("cores", "lanes"), [(1, 1), (3, 3), (64, 4)])
def test_lanes_for_what_is_made_ahead(monkeypatch: pytest.MonkeyPatch, cores: int, lanes: int):
    """Batches that are made ahead are computed on all cores at once, four at most."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(1000, 1000 + cores)), raising=False)

    assert choose_lanes(0, "cpu", makes_ahead=True) == lanes


def test_a_gpu_has_one_lane():
    """Several lanes on a GPU are refused, and none are chosen there."""
    assert choose_lanes(0, "cuda", makes_ahead=True) == 1
    with pytest.raises(ConfigError, match="lanes is 2, but a GPU has one"):
        choose_lanes(2, "cuda", makes_ahead=False)
