"""How a mixer comes into service and leaves it: in an order in which no request meets a gap."""

import logging
import time
from collections.abc import Callable
from functools import partial

from mixer_server.front.readiness import Readiness
from mixer_server.hosting.registry import Origin, Registry
from mixer_server.metrics import UNKNOWN, MixerMetrics
from samix.mixing.frozen import FrozenMixer

log = logging.getLogger(__name__)


class Hosting:
    """Takes mixers into service and out of it. For one thread at a time; requests go on meanwhile."""

    def __init__(
        self,
        registry: Registry,
        readiness: Readiness,
        metrics: MixerMetrics,
        warm_up: Callable[[FrozenMixer], None],
    ) -> None:
        self.registry = registry
        """What is hosted."""
        self.readiness = readiness
        """What of it is warm."""
        self._metrics = metrics
        self._warm_up = warm_up

    def expect_all(self) -> None:
        """Show what the registry holds as hosted and not ready yet; for the start."""
        for mixer in self.registry.mixers:
            self.readiness.expect(mixer.name, mixer.version)
            self._watch(mixer)

    def warm_all(self) -> None:
        """Warm up what the registry holds; for the start.

        Raises:
            BadBatch: if a mixer does not take the images it is warmed up with.
            ArtefactError: if a mixer's masks are not numbers.
        """
        for mixer in self.registry.mixers:
            self._warm(mixer)

    def take_in(self, mixer: FrozenMixer, origin: Origin) -> FrozenMixer:
        """Warm a mixer up, then make it the newest version of its name; until then the others answer.

        Returns:
            The mixer that is hosted: the one there was, if this version is hosted already.

        Raises:
            BadBatch: if the mixer does not take the images it is warmed up with; it is not hosted then.
            ArtefactError: if its masks are not numbers; likewise.
        """
        for hosted in self.registry.versions(mixer.name):
            if hosted.version == mixer.version:
                self.registry.add(hosted, origin)
                return hosted
        self.readiness.expect(mixer.name, mixer.version)
        self.registry.announce(mixer)
        try:
            self._warm(mixer)
        except BaseException:
            self.let_go(mixer.name, mixer.version)
            raise
        self.registry.add(mixer, origin)
        self._watch(mixer)
        return mixer

    def let_go(self, name: str, version: str = "") -> int:
        """Take one version of a mixer, or all, out of service; requests that were accepted are still answered.

        Returns:
            How many versions that were.
        """
        removed = self.registry.remove(name, version)
        for mixer in removed:
            self.readiness.forget(name, mixer.version)
            log.info("mixer_unloaded", extra={"mixer": name, "version": mixer.version})
        self._metrics.keep_mixers({(mixer.name, mixer.version) for mixer in self.registry.mixers})
        return len(removed)

    def count_failure(self, name: str) -> None:
        """Count a mixer that could not be loaded; under its name only if it is hosted, for labels are a closed set."""
        label = name if self.registry.versions(name) else UNKNOWN
        self._metrics.model_loads.labels(label, "failed").inc()

    def _warm(self, mixer: FrozenMixer) -> None:
        started_s = time.monotonic()
        self._warm_up(mixer)
        self.readiness.set_ready(mixer.name, mixer.version)
        self._metrics.model_loads.labels(mixer.name, "loaded").inc()
        fields = {"mixer": mixer.name, "version": mixer.version, "warm_up_s": time.monotonic() - started_s}
        log.info("mixer_ready", extra=fields)

    def _watch(self, mixer: FrozenMixer) -> None:
        # By its name: the gauge must not keep the mixer in memory once it is unloaded.
        self._metrics.watch_mixer(mixer, partial(self.readiness.is_ready, mixer.name))
        if origin := self.registry.origin(mixer):
            self._metrics.model_load_duration.labels(mixer.name).set(origin.read_s)
