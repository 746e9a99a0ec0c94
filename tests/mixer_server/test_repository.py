"""A folder of mixer files and what of it is served; scans are asked for, so nothing here waits for time."""

import logging
import os
import threading
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry
from serving import WAIT_S, tiny_mixer

from mixer_server.front.readiness import Readiness
from mixer_server.hosting.hosting import Hosting
from mixer_server.hosting.mixer_files import Load, load_copy, read_name
from mixer_server.hosting.polling import Poller
from mixer_server.hosting.registry import Registry
from mixer_server.hosting.repository import Repository, State
from mixer_server.hosting.shelf import Shelf
from mixer_server.metrics import MixerMetrics
from samix.errors import ArtefactError, MixerNotFound, MixerUnavailable
from samix.mixing.artefact import load_mixer, save_artefact
from samix.mixing.frozen import FrozenMixer

ONE, TWO, THREE = (tiny_mixer(seed=seed) for seed in range(3))


class Folder:
    """A folder of mixers, and a repository that follows it."""

    def __init__(self, path: Path, keep_versions: int = 2) -> None:
        self.path = path
        self.registry = Registry()
        self.readiness = Readiness()
        self.metrics = MixerMetrics(CollectorRegistry())
        self.warm_up: Callable[[FrozenMixer], None] = lambda _: None
        self.read: Load = load_mixer
        self.num_reads = 0
        hosting = Hosting(self.registry, self.readiness, self.metrics, lambda mixer: self.warm_up(mixer))
        self.repository = Repository(Shelf([path]), hosting, self._load, keep_versions=keep_versions)

    def put(self, mixer: FrozenMixer, file: str = "tiny", mtime_s: int = 0) -> Path:
        path = self.path / f"{file}.safetensors"
        save_artefact(path, mixer, {})
        if mtime_s:
            os.utime(path, (mtime_s, mtime_s))
        return path

    def versions(self, name: str = "tiny") -> list[str]:
        return [mixer.version for mixer in self.registry.versions(name)]

    def states(self) -> list[tuple[str, str, str, State]]:
        return [(entry.name, entry.version, Path(entry.file).stem, entry.state) for entry in self.repository.entries()]

    def loads(self, outcome: str, name: str = "tiny") -> float:
        labels = {"model": name, "outcome": outcome}
        return self.metrics.registry.get_sample_value("mixer_model_loads_total", labels) or 0.0

    def _load(self, path: Path) -> FrozenMixer:
        self.num_reads += 1
        return self.read(path)


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path)


def test_new_file_is_served(folder: Folder):
    """A file that appears is loaded, warmed up and served under the name inside it."""
    warm: list[str] = []
    folder.warm_up = lambda mixer: warm.append(mixer.version)
    folder.repository.scan()
    assert folder.registry.mixers == []

    folder.put(ONE, "any-file")
    folder.repository.scan()

    assert folder.registry.find("tiny").version == ONE.version
    assert warm == [ONE.version]
    assert folder.states() == [("tiny", ONE.version, "any-file", State.READY)]
    assert folder.loads("loaded") == 1


def test_unchanged_files_are_not_read_again(folder: Folder):
    """A scan that finds nothing new reads nothing."""
    folder.put(ONE)
    folder.repository.scan()

    folder.repository.scan()

    assert folder.num_reads == 1


def test_touched_file_is_the_same_version(folder: Folder):
    """A file with another date and the same content is read, and served on without a second warm-up."""
    path = folder.put(ONE)
    folder.repository.scan()
    served = folder.registry.find("tiny")
    folder.warm_up = lambda _: pytest.fail("it is warm")

    os.utime(path, (1, 1))
    folder.repository.scan()

    assert folder.num_reads == 2
    assert folder.registry.find("tiny") is served


def test_reload_keeps_the_older_version(folder: Folder):
    """After a file was written over, its new content is the newest version; the old one serves those that name it."""
    folder.put(ONE)
    folder.repository.scan()
    old = folder.registry.find("tiny")

    folder.put(TWO)
    folder.repository.scan()

    assert folder.versions() == [TWO.version, ONE.version]
    assert folder.registry.find("tiny", ONE.version) is old
    assert sorted(folder.states()) == sorted(
        [("tiny", TWO.version, "tiny", State.READY), ("tiny", ONE.version, "tiny", State.READY)]
    )


def test_oldest_version_is_unloaded(folder: Folder):
    """Of one mixer only so many versions stay in memory, and metrics know only those."""
    for mixer in (ONE, TWO, THREE):
        folder.put(mixer)
        folder.repository.scan()

    assert folder.versions() == [THREE.version, TWO.version]
    with pytest.raises(MixerNotFound, match=f"has version {THREE.version} and {TWO.version} here"):
        folder.registry.find("tiny", ONE.version)
    described = [
        sample.labels["version"] for metric in folder.metrics.model_info.collect() for sample in metric.samples
    ]
    assert sorted(described) == sorted(folder.versions())


def test_requests_meet_no_gap_during_a_reload(folder: Folder):
    """While a new version warms up the old one answers, and who names the new one is asked to come again."""
    folder.put(ONE)
    folder.repository.scan()
    seen: list[tuple[str, str, State]] = []

    def look(mixer: FrozenMixer) -> None:
        answering = folder.registry.find("tiny")
        folder.readiness.check("tiny")
        folder.readiness.check("tiny", answering.version)
        named = folder.registry.find("tiny", mixer.version)
        with pytest.raises(MixerUnavailable, match="is warming up"):
            folder.readiness.check("tiny", named.version)
        states = {version: state for _, version, _, state in folder.states()}
        seen.append((answering.version, named.version, states[mixer.version]))

    folder.warm_up = look
    folder.put(TWO)
    folder.repository.scan()

    assert seen == [(ONE.version, TWO.version, State.LOADING)]
    folder.readiness.check("tiny", TWO.version)


def test_first_warm_up_is_unavailable(folder: Folder):
    """A mixer that is warmed up for the first time is found and not ready yet."""
    seen: list[str] = []

    def look(mixer: FrozenMixer) -> None:
        folder.registry.find("tiny")
        with pytest.raises(MixerUnavailable, match="mixer 'tiny' is warming up"):
            folder.readiness.check("tiny")
        seen.append(mixer.version)

    folder.warm_up = look
    folder.put(ONE)
    folder.repository.scan()

    assert seen == [ONE.version]
    folder.readiness.check("tiny")


def test_deleted_file_is_unloaded(folder: Folder):
    """When a file goes all that was read from it goes, and others stay."""
    path = folder.put(ONE)
    folder.put(tiny_mixer("another"), "another")
    folder.repository.scan()
    folder.put(TWO)
    folder.repository.scan()

    path.unlink()
    folder.repository.scan()

    assert [mixer.name for mixer in folder.registry.mixers] == ["another"]
    assert [name for name, *_ in folder.states()] == ["another"]


def damage(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def half_write(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1000])


def empty(path: Path) -> None:
    path.write_bytes(b"")


@pytest.mark.parametrize("spoil", [damage, half_write, empty])
def test_damaged_file_does_not_stop_the_service(
    folder: Folder, caplog: pytest.LogCaptureFixture, spoil: Callable[[Path], None]
):
    """A damaged file is told once with its reason, what it held before keeps serving, and a repaired one is loaded."""
    path = folder.put(ONE)
    folder.repository.scan()
    folder.put(TWO)
    spoil(path)
    with caplog.at_level(logging.WARNING):
        folder.repository.scan()
        folder.repository.scan()

    [record] = [record for record in caplog.records if record.message == "mixer_not_loaded"]
    failed = [entry for entry in folder.repository.entries() if entry.state is State.FAILED]
    assert folder.versions() == [ONE.version]
    assert folder.loads("failed") == 1
    assert [(entry.name, entry.version, entry.file) for entry in failed] == [("tiny", "", str(path))]
    assert failed[0].reason.startswith(str(path))
    assert failed[0].reason == vars(record)["reason"]

    folder.put(TWO)
    folder.repository.scan()

    assert folder.versions() == [TWO.version, ONE.version]
    assert State.FAILED not in {state for *_, state in folder.states()}


def test_damaged_file_of_no_hosted_mixer(folder: Folder):
    """A file that was never good has no label of its own in the metrics, and takes part in nothing."""
    (folder.path / "noise.safetensors").write_text("noise")

    folder.repository.scan()

    assert folder.states() == [("noise", "", "noise", State.FAILED)]
    assert folder.loads("failed", "unknown") == 1


def test_mixer_that_cannot_be_warmed_up(folder: Folder):
    """A mixer that breaks while it is warmed up is not hosted, says why, and the others are loaded all the same."""
    folder.put(ONE)
    folder.put(tiny_mixer("another"), "another")

    def break_down(mixer: FrozenMixer) -> None:
        if mixer.name == "another":
            raise RuntimeError("out of memory")

    folder.warm_up = break_down
    folder.repository.scan()

    assert [mixer.name for mixer in folder.registry.mixers] == ["tiny"]
    assert [entry.reason for entry in folder.repository.entries()] == ["RuntimeError: out of memory", ""]
    assert not folder.readiness.is_ready("another")


def test_newest_file_of_a_name_is_served(folder: Folder):
    """Of two files of one name the one changed last is served, in whatever order they were found."""
    folder.put(TWO, "b", mtime_s=2000)
    folder.repository.scan()

    folder.put(ONE, "c", mtime_s=1000)
    folder.repository.scan()

    assert folder.versions() == [TWO.version]
    assert folder.states() == [
        ("tiny", TWO.version, "b", State.READY),
        ("tiny", "", "c", State.UNLOADED),
    ]


def test_older_file_takes_over(folder: Folder):
    """When the newest file of a name is deleted the one before it is loaded first: the name is always served."""
    path = folder.put(TWO, "b", mtime_s=2000)
    folder.put(ONE, "a", mtime_s=1000)
    folder.repository.scan()
    served: list[str] = []
    folder.warm_up = lambda _: served.append(folder.registry.find("tiny").version)

    path.unlink()
    folder.repository.scan()

    assert served == [TWO.version]
    assert folder.versions() == [ONE.version]


def test_file_that_was_rolled_back(folder: Folder):
    """A file that gets its former content back, with its former date, is what is served."""
    path = folder.put(ONE, mtime_s=1000)
    folder.repository.scan()
    folder.put(TWO, mtime_s=2000)
    folder.repository.scan()

    folder.put(ONE, mtime_s=1000)
    folder.repository.scan()

    assert path.stat().st_mtime == 1000
    assert folder.versions() == [ONE.version, TWO.version]


def test_damaged_newest_file_leaves_an_older_one(folder: Folder):
    """At a start with a damaged newest file the one before it is served."""
    damage(folder.put(TWO, "b"))
    folder.put(ONE, "a", mtime_s=1000)

    folder.repository.scan()

    assert folder.versions() == [ONE.version]


def test_file_with_another_mixer(folder: Folder):
    """A file that comes to hold a mixer of another name unloads the one it held."""
    folder.put(ONE)
    folder.repository.scan()

    folder.put(tiny_mixer("renamed"))
    folder.repository.scan()

    assert [mixer.name for mixer in folder.registry.mixers] == ["renamed"]


def test_copy_of_a_file_keeps_its_mixer(folder: Folder):
    """A mixer that two files hold stays until both are gone."""
    files = [folder.put(ONE, "a", mtime_s=1000), folder.put(ONE, "b", mtime_s=2000)]
    folder.repository.scan()

    files[1].unlink()
    folder.repository.scan()
    assert folder.versions() == [ONE.version]
    files[0].unlink()
    folder.repository.scan()

    assert folder.versions() == []


@pytest.fixture(scope="module")
def artefacts(tmp_path_factory: pytest.TempPathFactory) -> dict[bytes, FrozenMixer]:
    """Two versions of each of two mixers, by the content of their files."""
    path = tmp_path_factory.mktemp("artefacts") / "any.safetensors"
    mixers = {}
    for mixer in (tiny_mixer(name, seed) for name in ("one", "two") for seed in range(2)):
        save_artefact(path, mixer, {})
        mixers[path.read_bytes()] = mixer
    return mixers


@settings(max_examples=50)
@given(
    changes=st.lists(
        st.tuples(st.sampled_from("abc"), st.sampled_from([0, 1, 2, 3, None]), st.integers(0, 3), st.booleans()),
        max_size=12,
    )
)
def test_what_is_served_depends_on_the_folder_alone(
    artefacts: dict[bytes, FrozenMixer], changes: list[tuple[str, int | None, int, bool]]
):
    """Whatever a server has seen before, the newest file of each name is served, and what has no file is not."""
    with TemporaryDirectory() as path:
        folder = Folder(Path(path))
        folder.read = lambda copy: artefacts[copy.read_bytes()]
        on_disk: dict[str, tuple[int, FrozenMixer]] = {}
        for number, (name, choice, hours, is_scanned) in enumerate(changes):
            file = folder.path / f"{name}.safetensors"
            mtime_s = 10_000 + 3600 * hours + number  # copies may be older than what is there
            if choice is None:
                file.unlink(missing_ok=True)
                on_disk.pop(name, None)
            else:
                content, mixer = list(artefacts.items())[choice]
                file.write_bytes(content)
                os.utime(file, (mtime_s, mtime_s))
                on_disk[name] = mtime_s, mixer
            if is_scanned:
                folder.repository.scan()
        folder.repository.scan()

    newest = {mixer.name: mixer.version for _, mixer in sorted(on_disk.values(), key=lambda found: found[0])}
    served = {name: folder.versions(name) for name in ("one", "two") if folder.versions(name)}
    assert {name: versions[0] for name, versions in served.items()} == newest
    assert all(len(versions) <= 2 for versions in served.values())
    assert all(folder.readiness.is_ready(name, version) for name, versions in served.items() for version in versions)


def test_folder_that_is_gone_is_an_outage(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    """While a folder cannot be listed everything is served on, and that is said once."""
    path = tmp_path / "mixers"
    path.mkdir()
    folder = Folder(path)
    folder.put(ONE)
    folder.repository.scan()

    path.rename(tmp_path / "elsewhere")
    folder.repository.scan()
    folder.repository.scan()

    assert folder.versions() == [ONE.version]
    assert caplog.messages.count("repository_unreadable") == 1
    with pytest.raises(MixerUnavailable, match=r"the repository cannot be read: .*mixers"):
        folder.repository.load("tiny")
    (tmp_path / "elsewhere").rename(path)
    folder.repository.scan()
    assert folder.repository.load("tiny").version == ONE.version


def test_what_is_no_file_is_not_opened(folder: Folder):
    """Pipes, folders and dangling links with the suffix of a mixer are passed over; opening a pipe would never end."""
    os.mkfifo(folder.path / "pipe.safetensors")
    (folder.path / "folder.safetensors").mkdir()
    (folder.path / "link.safetensors").symlink_to("nowhere")

    folder.repository.scan()

    assert folder.repository.entries() == []


def test_load_on_command(folder: Folder):
    """A mixer is loaded by the name inside its newest file, or by the name of a file, and listed before as unloaded."""
    folder.put(ONE, "a", mtime_s=1000)
    folder.put(TWO, "b", mtime_s=2000)
    folder.repository.refresh()
    before = folder.states()

    by_name = folder.repository.load("tiny")
    by_file = folder.repository.load("a")

    assert {state for *_, state in before} == {State.UNLOADED}
    assert (by_name.version, by_file.version) == (TWO.version, ONE.version)
    assert folder.versions() == [ONE.version, TWO.version]


@pytest.mark.parametrize("name", ["ghost", "../tiny", "/etc/passwd", "tiny.safetensors", ""])
def test_names_are_no_paths(tmp_path: Path, name: str):
    """A name is only compared with those of the files there are, so nothing outside of the folder can be read."""
    outside = Folder(tmp_path)
    outside.put(ONE)
    inner = tmp_path / "mixers"
    inner.mkdir()
    folder = Folder(inner)
    folder.put(tiny_mixer("other"), "other")

    with pytest.raises(MixerNotFound, match=r"holds a mixer called .*; there is 'other'"):
        folder.repository.load(name)

    assert folder.num_reads == 0


def test_load_of_a_damaged_file(folder: Folder):
    """A command to load a damaged file is refused with the reason, and can be repeated."""
    path = folder.put(ONE)
    damage(path)

    for _ in range(2):
        with pytest.raises(ArtefactError, match=f"^{path}: weights and settings have checksum"):
            folder.repository.load("tiny")

    folder.put(ONE)
    assert folder.repository.load("tiny").version == ONE.version


def test_unload_on_command(folder: Folder):
    """One version or all of a mixer are unloaded; its files are listed as unloaded and can be loaded again."""
    folder.put(ONE, "a", mtime_s=1000)
    folder.put(TWO, "b", mtime_s=2000)
    for name in ("a", "b"):
        folder.repository.load(name)

    with pytest.raises(MixerNotFound, match="not 'x'"):
        folder.repository.unload("tiny", "x")
    assert folder.repository.unload("tiny", TWO.version) == 1
    assert folder.versions() == [ONE.version]
    assert folder.repository.unload("tiny") == 1
    with pytest.raises(MixerNotFound):
        folder.repository.unload("tiny")

    assert {state for *_, state in folder.states()} == {State.UNLOADED}
    assert folder.repository.load("tiny").version == TWO.version


def test_closed_repository_loads_nothing(folder: Folder):
    """A server that drains loads nothing more."""
    folder.put(ONE)
    folder.repository.close()

    with pytest.raises(MixerUnavailable, match="server is shutting down"):
        folder.repository.load("tiny")
    with pytest.raises(MixerUnavailable, match="server is shutting down"):
        folder.repository.scan()


def test_listing_does_not_wait_for_a_load(folder: Folder):
    """While a mixer loads, it is listed as loading, at once."""
    folder.put(ONE)
    states: list[list[tuple[str, str, str, State]]] = []

    def look(_: FrozenMixer) -> None:
        folder.repository.refresh()
        states.append(folder.states())

    folder.warm_up = look
    folder.repository.load("tiny")

    assert states == [[("tiny", ONE.version, "tiny", State.LOADING)]]


def test_file_is_read_from_a_copy(tmp_path: Path):
    """Writing over a file while it is read cannot harm the server: what reads it has a copy of its own."""
    path = tmp_path / "tiny.safetensors"
    save_artefact(path, ONE, {})

    def cut_short(copy: Path) -> FrozenMixer:
        os.truncate(path, 10)
        return load_mixer(copy)

    mixer = load_copy(path, cut_short)

    assert mixer.version == ONE.version


@pytest.mark.parametrize(
    "content",
    [b"", b"\xff" * 64, b"\x02" + bytes(7) + b"{}", b"\x02" + bytes(7) + b"[]", (1 << 62).to_bytes(8, "little") + b"{"],
)
def test_file_that_names_no_mixer(tmp_path: Path, content: bytes):
    """Whatever a file holds, asking for the name inside it ends, without reading much."""
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)

    assert read_name(path) is None


def test_poller_survives_a_failing_scan(caplog: pytest.LogCaptureFixture):
    """A scan that fails is logged and tried again; closing ends the thread."""
    scans = threading.Semaphore(0)

    def fail() -> None:
        scans.release()
        raise OSError("disk on fire")

    poller = Poller(fail, 0.001)
    poller.start()
    assert scans.acquire(timeout=WAIT_S)
    assert scans.acquire(timeout=WAIT_S)
    poller.close(WAIT_S)

    assert not poller._thread.is_alive()
    assert "scan_failed" in caplog.messages


def test_poller_that_was_never_started_closes():
    """A server that fails to start can still close all that it owns."""
    Poller(lambda: None, 1.0).close(WAIT_S)
