from pathlib import Path

import pytest
from serving import tiny_mixer

from mixer_server.hosting.registry import Origin, Registry, open_registry
from samix.errors import MixerNotFound, MixerUnavailable
from samix.mixing.artefact import save_artefact

OLD, NEW = tiny_mixer(seed=1), tiny_mixer(seed=2)
OTHER = tiny_mixer("another")


def test_newest_version_answers_for_the_name():
    """Without a version the mixer that was added last is found; a version that is named is found as it is."""
    registry = Registry([OLD])

    registry.add(NEW)

    assert registry.find("tiny") is registry.find("") is registry.find("tiny", NEW.version) is NEW
    assert registry.find("tiny", OLD.version) is registry.find("", OLD.version) is OLD


def test_hosted_mixers_are_sorted():
    """Mixers are listed by name, the versions of one name from the newest to the oldest."""
    registry = Registry([OLD, NEW, OTHER])

    assert registry.mixers == [OTHER, NEW, OLD]
    assert registry.versions("tiny") == (NEW, OLD)
    assert registry.versions("ghost") == ()


def test_hosted_version_becomes_the_newest_again():
    """Adding a version that is hosted already moves it to the front instead of hosting it twice."""
    registry = Registry([OLD, NEW])

    registry.add(OLD)

    assert registry.versions("tiny") == (OLD, NEW)


def test_announced_version_does_not_answer_for_the_name():
    """A mixer that is not warm yet is found by its version, and by its name only if there is no other."""
    registry = Registry([OLD])

    registry.announce(NEW)
    registry.announce(OTHER)

    assert registry.find("tiny") is OLD
    assert registry.find("tiny", NEW.version) is NEW
    assert registry.find("another") is OTHER


@pytest.mark.parametrize(
    ("name", "version", "sentence"),
    [
        ("", "", "this server hosts several mixers, name one of 'another', 'tiny'"),
        ("ghost", "", "no mixer is called 'ghost' here; this server hosts 'another', 'tiny'"),
        ("tiny", "0123", f"mixer 'tiny' has version {NEW.version} and {OLD.version} here, not '0123'"),
    ],
)
def test_what_is_not_hosted_is_not_found(name: str, version: str, sentence: str):
    """A name or version that is not hosted is refused with those that are."""
    registry = Registry([OLD, NEW, OTHER])

    with pytest.raises(MixerNotFound, match=sentence):
        registry.find(name, version)


def test_empty_registry():
    """A server may host nothing for a while, and says so."""
    with pytest.raises(MixerNotFound, match="hosts no mixer now"):
        Registry().find("")


@pytest.mark.parametrize(("name", "version"), [("", ""), ("ghost", ""), ("tiny", "0123")])
def test_unknown_may_still_come(name: str, version: str):
    """While a server is filled what it does not know is unavailable, which clients try again, and not found later."""
    registry = Registry([OLD], is_filling=True)

    with pytest.raises(MixerUnavailable, match="still reading its mixers"):
        registry.find(name, version)
    registry.end_filling()

    assert registry.find("tiny") is registry.find("") is OLD
    with pytest.raises(MixerNotFound):
        registry.find("ghost")


def test_removal_of_one_version():
    """Removing the newest version leaves the name to the one before it."""
    registry = Registry([OLD, NEW])

    removed = registry.remove("tiny", NEW.version)

    assert removed == [NEW]
    assert registry.find("tiny") is OLD


def test_removal_of_a_name():
    """Removing without a version removes all of them, and their origins."""
    origin = Origin(file=Path("x"), read_s=1.0)
    registry = Registry([OLD, OTHER])
    registry.add(NEW, origin)
    assert registry.origin(NEW) == origin

    removed = registry.remove("tiny")

    assert removed == [NEW, OLD]
    assert registry.mixers == [OTHER]
    assert registry.origin(NEW) is None
    assert registry.remove("tiny") == []


def test_files_are_the_origins(tmp_path: Path):
    """Mixers of files know which one they come from, and how long it took to read."""
    file = tmp_path / "some.safetensors"
    save_artefact(file, OLD, {})

    registry = open_registry([tmp_path], "cpu")

    origin = registry.origin(registry.find("tiny"))
    assert origin is not None
    assert origin.file == file
    assert origin.read_s > 0
