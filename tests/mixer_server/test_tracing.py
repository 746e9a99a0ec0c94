"""Spans of clients and servers reach a collector, nest, and name the request; a collector that is gone harms nobody."""

import subprocess
import sys
import time
from collections.abc import Iterator

import grpc
import pytest
import torch
from otlp_receiver import Collector, attributes_of, collecting, is_error
from serving import WAIT_S, connect, request, serve, tiny_mixer

import samix
from samix import tracing
from samix.client.config import ClientConfig, RetryPolicy, StreamPolicy
from samix.errors import ConfigError, MixerBroken
from samix.mixing.batch import MixPlan
from services.tracing import TracingConfig, open_tracing

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
STAGES = ["receive", "decode", "queue", "compute", "encode"]

IMAGES = torch.zeros(2, 3, 32, 32, dtype=torch.uint8)
PLAN = MixPlan(lam=torch.full((2,), 0.5), partner=torch.tensor([1, 0]))


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


@pytest.fixture
def collector() -> Iterator[Collector]:
    with collecting() as running:
        yield running


def to(collector: Collector, **changes: float) -> TracingConfig:
    return TracingConfig(endpoint=collector.endpoint, **changes)


def mix(address: str, max_batches: int = 16) -> str:
    """Mix one batch; returns its key."""
    config = ClientConfig(retry=RetryPolicy(attempts=1), streams=StreamPolicy(max_batches=max_batches))
    with samix.connect(address, config=config) as mixer:
        pending = mixer.submit(IMAGES, plan=PLAN)
        pending.result()
    return pending.key


@pytest.mark.parametrize(("max_batches", "method"), [(16, "MixStream"), (0, "Mix")], ids=["stream", "unary"])
def test_spans_nest_and_name_the_request(collector: Collector, max_batches: int, method: str):
    """The client's span holds the server's, which holds one for each stage, in order; both have the request's key."""
    with serve(tiny_mixer(), tracing=to(collector)) as server:
        key = mix(server.addresses["grpc"], max_batches)

    [client] = collector.named("mix")
    [served] = collector.named(method)
    below = sorted(collector.below(served), key=lambda span: span.start_time_unix_nano)
    assert attributes_of(client)["samix.request"] == attributes_of(served)["samix.request"] == key
    assert attributes_of(client)["samix.images"] == 2
    assert served.parent_span_id == client.span_id
    assert [span.name for span in below] == (STAGES if method == "MixStream" else STAGES[1:])
    assert {span.name for span in collector.below(client)} == {"encode", "blend", method}
    assert {span.trace_id for span in collector.spans} == {client.trace_id}


def test_stages_lie_within_their_request(collector: Collector):
    """Stages follow one another within the time of the server's span, whichever clock measured them."""
    with serve(tiny_mixer(), tracing=to(collector)) as server:
        mix(server.addresses["grpc"])

    [served] = collector.named("MixStream")
    slack_ns = 50_000_000  # the batcher's clock is read after another one, and the machine may be busy
    for stage in collector.below(served):
        assert served.start_time_unix_nano - slack_ns <= stage.start_time_unix_nano <= stage.end_time_unix_nano
        assert stage.end_time_unix_nano <= served.end_time_unix_nano + slack_ns


def test_programs_are_told_apart(collector: Collector):
    """A program says its name to the collector, unless OTEL_SERVICE_NAME gives another."""
    with open_tracing(to(collector), "samix-trainer", {"OTEL_SERVICE_NAME": "r50"}, rank="3"):
        pass
    with serve(tiny_mixer(), tracing=to(collector)) as server:
        mix(server.addresses["grpc"])

    assert {resource["service.name"] for resource in collector.resources} == {"samix-mixer"}
    assert set(collector.paths) == {"/v1/traces"}


@pytest.mark.parametrize("where", ["metadata", "message"])
def test_spans_of_other_clients_hold_ours(collector: Collector, where: str):
    """A client in another language passes its span by W3C metadata, or in the message."""
    with serve(tiny_mixer(), tracing=to(collector)) as server, connect(server.addresses["grpc"]) as stub:
        if where == "metadata":
            stub.Mix(request(), metadata=(("traceparent", PARENT),), timeout=WAIT_S)
        else:
            stub.Mix(request(traceparent=PARENT), timeout=WAIT_S)

    [served] = collector.named("Mix")
    assert served.trace_id.hex() == PARENT.split("-")[1]
    assert served.parent_span_id.hex() == PARENT.split("-")[2]


@pytest.mark.parametrize(
    "parent",
    ["", "nonsense", "00-" + "0" * 32 + "-" + "0" * 16 + "-01", f"{PARENT}-{' ' * 200_000}\nx"],
    ids=["none", "nonsense", "zeros", "endless"],
)
def test_requests_without_a_span_begin_a_trace(collector: Collector, parent: str):
    """A server traces those who trace nothing, or nonsense, for itself."""
    with serve(tiny_mixer(), tracing=to(collector)) as server, connect(server.addresses["grpc"]) as stub:
        stub.Mix(request(traceparent=parent), timeout=WAIT_S)

    [served] = collector.named("Mix")
    assert served.parent_span_id == b""


def test_failures_are_marked(collector: Collector):
    """The spans of a mix that fails say so, with the sentence."""
    mixer = tiny_mixer()
    with serve(mixer, tracing=to(collector)) as server:
        mixer.net.register_forward_pre_hook(lambda *_: torch.zeros(2) @ torch.zeros(3))
        with pytest.raises(MixerBroken):
            mix(server.addresses["grpc"])
        with connect(server.addresses["grpc"]) as stub, pytest.raises(grpc.RpcError):
            stub.Mix(request(lam=[2.0]), timeout=WAIT_S)

    [client], [streamed], [called] = (collector.named(name) for name in ("mix", "MixStream", "Mix"))
    assert is_error(client)
    assert is_error(streamed)
    assert "the mixer failed on this batch" in streamed.status.message
    assert is_error(called)


def test_sentences_of_failures_are_cut(collector: Collector):
    """What a peer wrote into a request does not fill the queue of spans by way of the error's sentence."""
    with serve(tiny_mixer(), tracing=to(collector)) as server, connect(server.addresses["grpc"]) as stub:
        error = stub.Mix.future(request(mixer="m" * 100_000), timeout=WAIT_S).exception()

    [called] = collector.named("Mix")
    assert isinstance(error, grpc.RpcError)
    assert is_error(called)
    assert len(called.status.message) <= 1024


def test_clients_choose_what_is_traced(collector: Collector):
    """A ratio of 0 traces nothing, and servers follow."""
    with serve(tiny_mixer(), tracing=to(collector, sample_ratio=0.0)) as server:
        for _ in range(3):
            mix(server.addresses["grpc"])

    assert collector.spans == []


def test_a_server_ends_its_tracing(collector: Collector):
    """After a server that traced, mixes in the same process make no spans."""
    with serve(tiny_mixer(), tracing=to(collector)):
        during = tracing.installed()

    assert during is not None
    assert tracing.installed() is None


def test_a_collector_that_is_gone_costs_no_batch():
    """Batches come, and the server ends in time, when nobody takes the spans."""
    with serve(tiny_mixer(), tracing=TracingConfig(endpoint="http://127.0.0.1:9")) as server:
        keys = [mix(server.addresses["grpc"]) for _ in range(20)]
        ending_s = time.monotonic()

    assert len(set(keys)) == 20
    assert time.monotonic() - ending_s < WAIT_S  # rather than the half minute that the exporter would try


def test_the_variable_of_opentelemetry_counts(collector: Collector, monkeypatch: pytest.MonkeyPatch):
    """OTEL_EXPORTER_OTLP_ENDPOINT turns tracing on, without a flag."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.endpoint)

    with serve(tiny_mixer()) as server:
        mix(server.addresses["grpc"])

    assert collector.named("mix")


def test_without_the_extra_the_flag_says_what_to_install(monkeypatch: pytest.MonkeyPatch):
    """The flag is refused with the cure where OpenTelemetry is not installed."""
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)

    with (
        pytest.raises(
            ConfigError, match=r"opentelemetry.* is not installed; .* pip install 'samix-service\[tracing\]'"
        ),
        open_tracing(TracingConfig(endpoint="http://127.0.0.1:9"), "samix-mixer", {}),
    ):
        pass


def test_without_the_extra_the_variable_is_a_warning(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture):
    """Where a whole cluster sets the variable, a program that cannot trace runs, and says so."""
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)

    with open_tracing(TracingConfig(), "samix-mixer", {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9"}):
        during = tracing.installed()

    assert during is None
    assert "tracing_off" in caplog.messages


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        ({"endpoint": "collector:4318"}, "tracing.endpoint must begin with http:// or https://, got 'collector:4318'"),
        ({"endpoint": "https://me:secret@collector"}, "OTEL_EXPORTER_OTLP_HEADERS takes what a collector asks for"),
        ({"sample_ratio": 1.5}, r"tracing.sample-ratio must lie in 0..1, got 1.5"),
    ],
)
def test_flags_that_cannot_be(flags: dict, sentence: str):
    """Wrong values are refused with the value and the cure."""
    with pytest.raises(ConfigError) as refused:
        TracingConfig(**flags)

    assert sentence in str(refused.value)


@pytest.mark.slow
def test_programs_that_do_not_trace_import_nothing_of_it():
    """Off, tracing costs nothing: no program imports OpenTelemetry."""
    code = "import mixer_server.cli, trainer.cli, sys; print([m for m in sys.modules if m.startswith('opentelemetry')])"

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout.strip() == "[]"
