"""A server with certificates and tokens, as its callers over gRPC find it."""

import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest
import torch
from certificates import ADMIN, MIX, ONLINE, READ, Site
from google.protobuf.descriptor_pool import Default
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection, reflection_pb2, reflection_pb2_grpc
from serving import WAIT_S, health_of, sample, serve, wait_until

from mixer_server.app import MixerServer
from mixer_server.front.readiness import DATASET_SERVICE, INFERENCE_SERVICE, ONLINE_SERVICE, SERVICE
from mixer_server.front.roles import ROLES
from samix import connect
from samix.client.config import ClientConfig, StreamPolicy
from samix.credentials import Credentials, open_channel
from samix.errors import BadBatch, MixerUnavailable, NotAuthenticated, NotPermitted, NotTrusted
from samix.health import ask_health, open_health_channel
from samix.mixer.v1 import mixer_pb2 as pb
from samix.mixing.frozen import FrozenMixer
from services.security.config import SecurityConfig
from services.security.gatekeeper import HEALTH_SERVICE

PATIENT = ClientConfig(deadline_s=WAIT_S)
UNARY = replace(PATIENT, streams=StreamPolicy(max_batches=0))


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    return Site(tmp_path_factory.mktemp("site"))


@pytest.fixture(scope="module")
def strangers(tmp_path_factory: pytest.TempPathFactory) -> Site:
    return Site(tmp_path_factory.mktemp("strangers"))


@pytest.fixture(scope="module")
def guarded(site: Site, mixer: FrozenMixer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[MixerServer]:
    """A server with TLS and tokens."""
    path = tmp_path_factory.mktemp("s") / "u.sock"
    with serve(mixer, security=site.security(has_tokens=True), unix_socket=path) as server:
        yield server


def mix_once(target: str, credentials: Credentials, config: ClientConfig = PATIENT) -> None:
    images = torch.zeros(2, 3, 32, 32, dtype=torch.uint8)
    with connect(target, config=replace(config, credentials=credentials)) as remote:
        assert remote.mix(images, seed=1).lam.shape == (2,)


@pytest.mark.parametrize("config", [PATIENT, UNARY], ids=["stream", "unary"])
def test_a_client_with_a_token_mixes(guarded: MixerServer, site: Site, config: ClientConfig):
    """Who trusts the authority and has a token with role mix is served, on streams and by single calls."""
    mix_once(guarded.addresses["grpc"], site.credentials(secret=MIX), config)


@pytest.mark.parametrize("config", [PATIENT, UNARY], ids=["stream", "unary"])
@pytest.mark.parametrize("secret", ["", "a-token-of-another-server", MIX[:-1], MIX.upper()])
def test_no_or_a_wrong_token(guarded: MixerServer, site: Site, config: ClientConfig, secret: str):
    """Without a token that the server knows nothing is done; the client is told at once, and does not try again."""
    before = sample(guarded, "mixer_requests_total", **denied("MixStream" if config is PATIENT else "Mix"))
    with pytest.raises(NotAuthenticated, match="token") as caught:
        mix_once(guarded.addresses["grpc"], site.credentials(secret=secret), config)

    assert secret == "" or secret not in str(caught.value)
    assert sample(guarded, "mixer_requests_total", **denied("MixStream" if config is PATIENT else "Mix")) == before + 1


def denied(method: str, code: str = "UNAUTHENTICATED") -> dict[str, str]:
    return {"model": "unknown", "version": "unknown", "method": method, "code": code}


@pytest.mark.parametrize("secret", [ONLINE, READ, ADMIN])
def test_a_wrong_role(guarded: MixerServer, site: Site, secret: str):
    """A token for other things is refused with the role that it lacks, and those it has."""
    with pytest.raises(NotPermitted, match=r"needs role mix, the token of '\w+er' has \w+ \(PERMISSION_DENIED\)"):
        mix_once(guarded.addresses["grpc"], site.credentials(secret=secret))


def test_health_needs_no_token(guarded: MixerServer, site: Site):
    """Probes ask for health over TLS, and show nothing."""
    with open_health_channel(guarded.addresses["grpc"], site.credentials()) as channel:
        assert ask_health(channel, timeout_s=WAIT_S).is_serving


def test_watching_health_needs_no_token(guarded: MixerServer, site: Site):
    """Watchers of health are told, too."""
    with open_channel(guarded.addresses["grpc"], site.credentials()) as channel:
        told = next(health_of(channel).Watch(health_pb2.HealthCheckRequest(), timeout=WAIT_S))

    assert told.status == health_pb2.HealthCheckResponse.SERVING


def test_reflection_takes_any_token(guarded: MixerServer, site: Site):
    """What the server can do it tells to whoever has a token, of whatever role, and to nobody else."""
    question = [reflection_pb2.ServerReflectionRequest(list_services="")]
    with open_channel(guarded.addresses["grpc"], site.credentials()) as channel:
        stub: Any = reflection_pb2_grpc.ServerReflectionStub(channel)  # its methods are unknown to type checkers
        ask = stub.ServerReflectionInfo
        told = list(ask(iter(question), timeout=WAIT_S, metadata=[("authorization", f"Bearer {READ}")]))
        with pytest.raises(grpc.RpcError) as caught:
            list(ask(iter(question), timeout=WAIT_S))

    assert told[0].list_services_response.service
    assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED


def test_every_method_asks_for_its_role(guarded: MixerServer, site: Site):
    """Each method of each service that the server shows is refused without a token, and with one for other things."""
    wrong = {SERVICE: ONLINE, INFERENCE_SERVICE: READ, DATASET_SERVICE: ADMIN, ONLINE_SERVICE: MIX}
    with open_channel(guarded.addresses["grpc"], site.credentials()) as channel:
        for service, secret in wrong.items():
            for method in Default().FindServiceByName(service).methods:
                path = f"/{service}/{method.name}"
                for metadata, code in (((), "UNAUTHENTICATED"), (bearing(secret), "PERMISSION_DENIED")):
                    with pytest.raises(grpc.RpcError) as caught:
                        list(channel.stream_stream(path)(iter(()), timeout=WAIT_S, metadata=metadata))
                    assert (path, caught.value.code().name) == (path, code)


def test_every_service_has_a_role(guarded: MixerServer, site: Site):
    """What the server shows is guarded by a role, but for health and reflection."""
    question = [reflection_pb2.ServerReflectionRequest(list_services="")]
    with open_channel(guarded.addresses["grpc"], site.credentials()) as channel:
        stub: Any = reflection_pb2_grpc.ServerReflectionStub(channel)
        (told,) = stub.ServerReflectionInfo(iter(question), timeout=WAIT_S, metadata=bearing(READ))

    services = {service.name for service in told.list_services_response.service}
    assert services - set(ROLES) == {HEALTH_SERVICE, reflection.SERVICE_NAME}


def bearing(secret: str) -> tuple[tuple[str, str], ...]:
    return (("authorization", f"Bearer {secret}"),)


@pytest.mark.parametrize("method", ["/samix.mixer.v1.MixerService/Guess", "/ghost.Service/Method"])
def test_unknown_methods_tell_nothing(guarded: MixerServer, site: Site, method: str):
    """Who has no token does not hear which methods there are, and adds no labels to the metrics."""
    with open_channel(guarded.addresses["grpc"], site.credentials()) as channel, pytest.raises(grpc.RpcError) as caught:
        channel.unary_unary(method)(b"", timeout=WAIT_S)

    assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED
    assert method.split("/")[1] not in str(caught.value.details())
    assert sample(guarded, "mixer_requests_total", **denied("Guess")) == 0
    assert sample(guarded, "mixer_requests_total", **denied("unknown")) >= 1


def test_the_unix_socket_needs_no_token(guarded: MixerServer):
    """Only the server's user may open its unix socket, so nothing else is asked there."""
    mix_once(f"unix://{guarded.addresses['unix']}", Credentials())
    mix_once(f"unix://{guarded.addresses['unix']}", Credentials(), UNARY)


def test_a_token_needs_no_tls_on_loopback(mixer: FrozenMixer, site: Site):
    """Tokens alone guard a server of one machine, from its other users."""
    with serve(mixer, security=SecurityConfig(tokens=site.write_tokens())) as server:
        mix_once(server.addresses["grpc"], Credentials(token_file=str(site.token_file(MIX))))
        with pytest.raises(NotAuthenticated, match="none came"):
            mix_once(server.addresses["grpc"], Credentials())


def test_another_authority(guarded: MixerServer, strangers: Site):
    """A server with the certificate of another authority is not believed, and the message says which file is wrong."""
    with pytest.raises(NotTrusted, match=r"another authority than those in tls_ca \(SAMIX_TLS_CA\)"):
        mix_once(guarded.addresses["grpc"], strangers.credentials(secret=MIX))


def test_another_name(mixer: FrozenMixer, site: Site):
    """A server whose certificate is for other names is not believed, and the message says how to mend it."""
    certificate, key = site.write("elsewhere", named(site, "elsewhere.example.org"))
    with (
        serve(mixer, security=SecurityConfig(tls_cert=certificate, tls_key=key)) as server,
        pytest.raises(NotTrusted, match="samix certs --names"),
    ):
        mix_once(server.addresses["grpc"], site.credentials())


def named(site: Site, name: str) -> Any:
    from certificates import DAY, now

    from services.security.authority import issue_server

    return issue_server(site.authority, [name], now(), DAY)


def test_plain_text_on_the_tls_port(guarded: MixerServer):
    """A client that speaks plain text to a TLS port hears that it may have to speak TLS."""
    with pytest.raises(MixerUnavailable, match=r"does it want TLS \(tls_ca, SAMIX_TLS_CA\)"):
        mix_once(guarded.addresses["grpc"], Credentials())


def test_tls_on_a_plain_port(mixer: FrozenMixer, site: Site):
    """A client that speaks TLS to a plain port hears that, and is not kept until its deadline."""
    with serve(mixer) as server, pytest.raises(NotTrusted, match="it speaks plain text there, and this client TLS"):
        mix_once(server.addresses["grpc"], site.credentials())


def test_waiting_for_a_server_that_is_not_trusted_is_vain(guarded: MixerServer, strangers: Site):
    """Who waits for a server to start does not wait for one that he will never believe."""
    config = replace(PATIENT, credentials=strangers.credentials())
    started_s = time.monotonic()
    with connect(guarded.addresses["grpc"], config=config) as remote, pytest.raises(NotTrusted):
        remote.wait_ready(10 * WAIT_S)

    assert time.monotonic() - started_s < 5 * WAIT_S


def test_mutual_tls(mixer: FrozenMixer, site: Site, strangers: Site):
    """A server that wants certificates of its clients serves those of its authority, and none without or of another."""
    with serve(mixer, security=site.security(is_mutual=True)) as server:
        address = server.addresses["grpc"]
        mix_once(address, site.credentials(has_certificate=True))
        with pytest.raises(MixerUnavailable, match="or a certificate of the client"):
            mix_once(address, site.credentials())
        other, key = map(str, strangers.client())
        with pytest.raises(MixerUnavailable):
            mix_once(address, Credentials(tls_ca=str(site.ca), tls_cert=other, tls_key=key))


def test_old_tls_is_refused(guarded: MixerServer):
    """TLS 1.1 gets no connection."""
    import ssl

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_ciphers("ALL:@SECLEVEL=0")
    with pytest.warns(DeprecationWarning, match="TLSv1"):
        context.minimum_version, context.maximum_version = ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1
    host, port = guarded.addresses["grpc"].split(":")

    with (
        socket.create_connection((host, int(port)), timeout=WAIT_S) as plain,
        pytest.raises(OSError, match=r"SSL|reset"),
    ):
        context.wrap_socket(plain)


def test_metadata_is_bounded(guarded: MixerServer, site: Site):
    """A call with more metadata than allowed is refused, and others go on."""
    with open_channel(guarded.addresses["grpc"], site.credentials()) as channel:
        ask = channel.unary_unary("/samix.mixer.v1.MixerService/ListMixers")
        with pytest.raises(grpc.RpcError) as caught:
            ask(b"", timeout=WAIT_S, metadata=(("x-long", "x" * 40_000),))
    mix_once(guarded.addresses["grpc"], site.credentials(secret=MIX))

    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


def test_large_messages_are_refused(mixer: FrozenMixer, site: Site):
    """A message over the limit is refused as too large, which no retry mends."""
    from mixer_server.front.request_config import RequestConfig

    security = site.security(has_tokens=True)
    with (
        serve(mixer, security=security, requests=RequestConfig(max_message_mib=1)) as server,
        connect(server.addresses["grpc"], config=replace(UNARY, credentials=site.credentials(secret=MIX))) as remote,
        pytest.raises(BadBatch),
    ):
        remote.mix(torch.zeros(128, 3, 64, 64, dtype=torch.uint8), seed=1)


def test_connections_are_bounded(mixer: FrozenMixer):
    """Beyond the limit a connection is closed at once, while those there are go on."""
    with serve(mixer, security=SecurityConfig(max_connections=4)) as server:
        host, port = server.addresses["grpc"].split(":")
        with grpc.insecure_channel(server.addresses["grpc"]) as channel:
            ask = channel.unary_unary("/samix.mixer.v1.MixerService/ListMixers")
            ask(b"", timeout=WAIT_S)
            opened = [socket.create_connection((host, int(port)), timeout=WAIT_S) for _ in range(12)]
            try:
                closed = [connection for connection in opened if is_closed(connection)]
                ask(b"", timeout=WAIT_S)
            finally:
                for connection in opened:
                    connection.close()

    assert len(closed) >= 9


def test_one_address_cannot_have_all_connections(mixer: FrozenMixer):
    """Of the connections of one address those over its share are closed, the youngest first; others find room."""
    with serve(mixer, security=SecurityConfig(max_connections_per_client=20)) as server:
        host, port = server.addresses["grpc"].split(":")
        with grpc.insecure_channel(server.addresses["grpc"]) as channel:
            ask = channel.unary_unary("/samix.mixer.v1.MixerService/ListMixers")
            ask(b"", timeout=WAIT_S)
            opened = [socket.create_connection((host, int(port)), timeout=WAIT_S) for _ in range(100)]
            try:
                wait_until(lambda: sum(has_ended(connection) for connection in opened) >= 81)
                ask(b"", timeout=WAIT_S)
                with socket.create_connection(
                    (host, int(port)), timeout=WAIT_S, source_address=("127.0.0.2", 0)
                ) as other:
                    assert not is_closed(other)
            finally:
                for connection in opened:
                    connection.close()


def is_closed(connection: socket.socket) -> bool:
    """Whether the server has hung up, or says something, as it does to those it keeps."""
    try:
        return connection.recv(1) == b""
    except ConnectionError:
        return True


def has_ended(connection: socket.socket) -> bool:
    """Whether the server has hung up by now; what it said before is thrown away."""
    connection.setblocking(False)
    try:
        while connection.recv(4096):
            pass
    except BlockingIOError:
        return False
    except ConnectionError:
        pass
    return True


def test_silent_connections_are_closed(mixer: FrozenMixer):
    """Who connects and says nothing is cut off after the time for a handshake."""
    with serve(mixer, security=SecurityConfig(handshake_timeout_s=0.3)) as server:
        host, port = server.addresses["grpc"].split(":")
        with socket.create_connection((host, int(port)), timeout=WAIT_S) as silent:
            while silent.recv(1024):
                pass


def test_new_certificates_are_taken_over_under_traffic(mixer: FrozenMixer, tmp_path: Path):
    """A server shows new certificates to those who connect, keeps the old ones if the new are broken, and its open
    streams never notice."""
    site, later = Site(tmp_path / "site"), Site(tmp_path / "later")
    security = site.security()
    assert security.tls_cert is not None
    assert security.tls_key is not None
    with serve(mixer, security=security) as server, traffic(server, site.credentials()) as counted:
        address = server.addresses["grpc"]
        security.tls_cert.write_text("this is no certificate")
        wait_until(lambda: sample(server, "mixer_security_file_stale", file="certificates") == 1)
        mix_once(address, site.credentials())

        for path, new in zip((security.tls_cert, security.tls_key), later.server(), strict=True):
            new.replace(path)
        wait_until(lambda: sample(server, "mixer_security_file_stale", file="certificates") == 0)
        mix_once(address, later.credentials())
        with pytest.raises(NotTrusted):
            mix_once(address, site.credentials())
        seen = counted.count
        wait_until(lambda: counted.count > seen + 2)

    assert counted.failure is None


def test_new_tokens_are_taken_over_under_traffic(mixer: FrozenMixer, tmp_path: Path):
    """Tokens that are added are good, and those taken out are not, within a second or so and without a restart."""
    site = Site(tmp_path)
    security = site.security(has_tokens=True)
    fresh = "a-fresh-token-of-a-trainer"
    with serve(mixer, security=security) as server, traffic(server, site.credentials(secret=MIX)) as counted:
        address = server.addresses["grpc"]
        with pytest.raises(NotAuthenticated):
            mix_once(address, site.credentials(secret=fresh), UNARY)
        site.write_tokens(f"mix,online fresh {fresh}")
        wait_until(lambda: works(address, replace(site.credentials(), token_file=str(site.token_file(fresh, "fresh")))))
        assert security.tokens is not None
        security.tokens.write_text("mix too-short x\n")
        wait_until(lambda: sample(server, "mixer_security_file_stale", file="tokens") == 1)
        assert works(address, replace(site.credentials(), token_file=str(site.folder / "fresh")))
        seen = counted.count
        wait_until(lambda: counted.count > seen + 2)

    assert counted.failure is None


def works(address: str, credentials: Credentials) -> bool:
    try:
        mix_once(address, credentials, UNARY)
    except NotAuthenticated:
        return False
    return True


class traffic:  # noqa: N801 - used as a function
    """Mixes again and again on one connection, until the end of the block."""

    def __init__(self, server: MixerServer, credentials: Credentials) -> None:
        self.count = 0
        self.failure: Exception | None = None
        self._remote = connect(server.addresses["grpc"], config=replace(PATIENT, credentials=credentials))
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> "traffic":
        self._thread.start()
        wait_until(lambda: self.count or self.failure)
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        self._thread.join(WAIT_S)
        self._remote.close()

    def _run(self) -> None:
        images = torch.zeros(2, 3, 32, 32, dtype=torch.uint8)
        try:
            while not self._is_over.is_set():
                self._remote.mix(images, seed=1)
                self.count += 1
        except Exception as error:  # noqa: BLE001 - shown by the test
            self.failure = error


def test_the_expiry_is_told(guarded: MixerServer):
    """When the certificate ends is on the metrics page, in seconds since 1970."""
    expiry_s = sample(guarded, "mixer_certificate_expiry_timestamp_seconds", file="server")

    assert 0 < expiry_s - time.time() < 25 * 3600


def test_one_client_cannot_have_all_streams(mixer: FrozenMixer):
    """Beyond its share of streams a client is refused with the number, and told when to come again."""
    from mixer_server.front.request_config import RequestConfig

    with (
        serve(mixer, requests=RequestConfig(max_streams_per_client=2)) as server,
        grpc.insecure_channel(server.addresses["grpc"]) as channel,
    ):
        open_stream = channel.stream_stream(
            "/samix.mixer.v1.MixerService/MixStream", response_deserializer=pb.MixStreamResponse.FromString
        )
        hold = threading.Event()
        calls = [open_stream(waiting(hold), timeout=WAIT_S) for _ in range(2)]
        for call in calls:
            next(call)
        with pytest.raises(grpc.RpcError) as caught:
            next(open_stream(waiting(hold), timeout=WAIT_S))
        hold.set()
        for call in calls:
            call.cancel()

    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "2 streams of ipv4:127.0.0.1 are open" in str(caught.value.details())


def waiting(hold: threading.Event) -> Iterator[bytes]:
    hold.wait(WAIT_S)
    yield from ()


def test_old_connections_end_without_a_loss(mixer: FrozenMixer):
    """A client whose connections get old again and again, and are cut off after their grace, goes on."""
    limits = SecurityConfig(connection_age_s=0.5, connection_grace_s=1.0)
    with serve(mixer, security=limits) as server, traffic(server, Credentials()) as counted:
        until_s = time.monotonic() + 3.0
        wait_until(lambda: time.monotonic() > until_s or counted.failure)
        seen = counted.count
        wait_until(lambda: counted.count > seen + 2 or counted.failure)

    assert counted.failure is None
