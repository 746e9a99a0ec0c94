"""When mixers are loaded: at the start only, on an operator's word, or whenever files change."""

from collections.abc import Sequence
from pathlib import Path

from mixer_server.config import ModelControl
from mixer_server.hosting.hosting import Hosting
from mixer_server.hosting.mixer_files import Load, check_paths
from mixer_server.hosting.polling import Poller
from mixer_server.hosting.repository import Repository
from mixer_server.hosting.shelf import Shelf


class Stock:
    """All mixers of a server, from its start to its end. `start`, then `drain`, then `close` once."""

    def __init__(
        self,
        control: ModelControl,
        paths: Sequence[Path],
        hosting: Hosting,
        load: Load,
        *,
        keep_versions: int,
        poll_s: float,
    ) -> None:
        """Stock a server with mixers.

        Args:
            control: when they are loaded.
            paths: files, and folders of them; not looked at if they are loaded at the start only.
            hosting: what takes them into service, and holds those of the start.
            load: reads one from a file.
            keep_versions: most versions of one in memory.
            poll_s: time between two looks at the folders, in seconds.
        """
        self._control = control
        self._paths = paths
        self._hosting = hosting
        self.repository = Repository(Shelf(paths), hosting, load, keep_versions=keep_versions)
        """What is known of the files, and loads them."""
        self._poller = Poller(self.repository.scan, poll_s)

    def check(self) -> None:
        """Show what is hosted from the start, and refuse what could never be loaded.

        Raises:
            ConfigError: if mixers are to be loaded later, and no path is given.
            ArtefactError: likewise, and there is nothing at a path.
        """
        if self._control != "none":
            check_paths(self._paths)
        self._hosting.expect_all()

    def start(self) -> None:
        """Warm up what is there; the server is ready when this returns.

        Raises:
            BadBatch: if a mixer of the start does not take the images it is warmed up with.
            ArtefactError: if its masks are not numbers.
        """
        self._hosting.warm_all()
        match self._control:
            case "explicit":
                self.repository.refresh()
            case "poll":
                self.repository.scan()
                self._poller.start()
        self._hosting.registry.end_filling()
        self._hosting.readiness.open()

    def drain(self) -> None:
        """Load nothing more."""
        self.repository.close()

    def close(self, timeout_s: float) -> None:
        """Look at no folder any more; a load that has begun is waited for, but no longer than `timeout_s`."""
        self.repository.close()
        self._poller.close(timeout_s)
