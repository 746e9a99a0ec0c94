import pytest

from mixer_server.config import ServerConfig
from mixer_server.engine.device import open_passes
from mixer_server.engine.passes import MixerPasses
from samix.errors import ConfigError


def test_a_cpu_computes_by_default():
    """Without a GPU passes are computed here."""
    passes = open_passes(ServerConfig(mixers=()), "cpu")

    assert isinstance(passes, MixerPasses)
    passes.close()


def test_compiling_needs_a_compiler(monkeypatch: pytest.MonkeyPatch):
    """To compile where there is no C++ compiler is refused at the start, with the cure."""
    monkeypatch.setenv("PATH", "")

    with pytest.raises(ConfigError, match=r"--compile needs a C\+\+ compiler, found no g\+\+.*; install one"):
        open_passes(ServerConfig(mixers=(), compile=True), "cpu")


def test_recordings_hold_images():
    """A recording of no image is refused."""
    with pytest.raises(ConfigError, match="cuda-graphs must be numbers of images, at least 1, got 0"):
        ServerConfig(mixers=(), cuda_graphs=(0, 4))
