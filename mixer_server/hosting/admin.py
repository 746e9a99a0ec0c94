"""What operators tell a running server: samix.mixer.v1.AdminService, on a unix socket of its own.

Whoever may open the socket may unload every mixer, so only this user may, and no port of the clients answers it.
"""

import logging
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc

from mixer_server.front.edge import Call, Edge, parse
from mixer_server.front.in_flight import InFlight
from mixer_server.hosting.repository import Entry, Repository
from mixer_server.metrics import MixerMetrics
from samix.errors import ArtefactError, BadBatch
from samix.mixer.v1 import admin_pb2 as admin
from samix.mixer.v1 import mixer_pb2 as pb
from samix.mixing.frozen import FrozenMixer
from services.grpc_server import listen_unix, make_server

log = logging.getLogger(__name__)

SERVICE = "samix.mixer.v1.AdminService"

_NUM_THREADS = 4
_MAX_MESSAGE_MIB = 1

_CURES = {
    "none": "loads mixers at its start only (--model-control none); start it with --model-control explicit or poll",
    "poll": "follows the files in its folders (--model-control poll); add, replace or delete the file there",
}


class AdminServicer:
    """The methods of AdminService. Names are compared with those of files that are there, and never become paths."""

    def __init__(
        self,
        repository: Repository,
        *,
        control: str,
        describe: Callable[[FrozenMixer], pb.MixerInfo],
        drain: Callable[[], None],
    ) -> None:
        """Speak for a repository.

        Args:
            repository: what is listed, loaded and unloaded.
            control: of the configuration's `model_control`; only an explicit server is told what to load.
            describe: how a loaded mixer is described.
            drain: begins to drain, and returns at once; called once, however often operators ask.
        """
        self._repository = repository
        self._control = control
        self._describe = describe
        self._drain = drain
        self._asked = threading.Lock()  # held from the first Drain on

    def attach(self, server: grpc.Server, edge: Edge) -> None:
        """Answer AdminService on this server."""
        methods = {
            "ListRepository": self.list_repository,
            "LoadMixer": self.load_mixer,
            "UnloadMixer": self.unload_mixer,
            "Drain": self.drain,
        }
        handlers = {name: edge.wrap(name, method) for name, method in methods.items()}
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))

    def list_repository(self, data: bytes, call: Call) -> bytes:  # noqa: ARG002 - every method has this signature
        """List what the repository holds and what is loaded of it."""
        parse(admin.ListRepositoryRequest, data)
        if self._control == "explicit":  # whose files nobody looks at meanwhile
            self._repository.refresh()
        entries = [_encode(entry) for entry in self._repository.entries()]
        return admin.ListRepositoryResponse(entries=entries).SerializeToString()

    def load_mixer(self, data: bytes, call: Call) -> bytes:
        """Load the newest file of a mixer."""
        request = parse(admin.LoadMixerRequest, data).message
        self._check(request.name)
        try:
            mixer = self._repository.load(request.name)
        except ArtefactError as error:  # no state of this server will make it right: the file must be another one
            raise BadBatch(str(error)) from error
        call.is_about(mixer)
        return admin.LoadMixerResponse(mixer=self._describe(mixer)).SerializeToString()

    def unload_mixer(self, data: bytes, call: Call) -> bytes:  # noqa: ARG002 - the mixer is no label any more
        """Unload a mixer, or one version of it."""
        request = parse(admin.UnloadMixerRequest, data).message
        self._check(request.name)
        num_versions = self._repository.unload(request.name, request.version)
        return admin.UnloadMixerResponse(num_versions=num_versions).SerializeToString()

    def drain(self, data: bytes, call: Call) -> bytes:
        """Begin to drain."""
        parse(admin.DrainRequest, data)
        log.info("drain_asked", extra={"peer": call.context.peer()})
        if self._asked.acquire(blocking=False):
            self._drain()
        return admin.DrainResponse().SerializeToString()

    def _check(self, name: str) -> None:
        if self._control in _CURES:
            raise BadBatch(f"this server {_CURES[self._control]}")
        if not name:
            raise BadBatch("the name of the mixer is empty; name one that `samix mixers list` shows")


class AdminServer:
    """Answers operators until it is closed. Use `serve_admin` to open one."""

    def __init__(self, server: grpc.Server, executor: ThreadPoolExecutor) -> None:
        self._server = server
        self._executor = executor

    def close(self, grace_s: float) -> None:
        """Stop listening and remove the socket; a call that takes longer than `grace_s` is cancelled."""
        self._server.stop(grace_s).wait()
        self._executor.shutdown(wait=False)  # a load that goes on has no one left to tell


def serve_admin(servicer: AdminServicer, metrics: MixerMetrics, path: Path) -> AdminServer:
    """Serve AdminService from threads of its own, so that busy clients cannot keep an operator out.

    Raises:
        ConfigError: if the path cannot be listened on.
    """
    executor = ThreadPoolExecutor(_NUM_THREADS, "admin")
    server = make_server(executor, max_message_mib=_MAX_MESSAGE_MIB)
    servicer.attach(server, Edge(metrics, InFlight()))
    listen_unix(server, path)
    server.start()
    return AdminServer(server, executor)


def _encode(entry: Entry) -> admin.RepositoryEntry:
    return admin.RepositoryEntry(
        name=entry.name,
        version=entry.version,
        file=entry.file,
        state=f"MIXER_STATE_{entry.state.name}",
        reason=entry.reason,
    )
