import grpc
import pytest
import torch
from serving import WAIT_S, Gate, ask, connect, random_call, request, sample, serve, tiny_mixer

from mixer_server.app import MixerServer
from samix.errors import ArtefactError
from samix.mixing.frozen import FrozenMixer


def break_weights(mixer: FrozenMixer) -> None:
    for parameter in mixer.net.parameters():
        parameter.data.fill_(float("nan"))


def status_of(server: MixerServer) -> tuple[grpc.StatusCode, str]:
    with connect(server.addresses["grpc"]) as stub, pytest.raises(grpc.RpcError) as caught:
        stub.Mix(request(), timeout=WAIT_S)
    assert isinstance(caught.value, grpc.Call)
    return caught.value.code(), caught.value.details() or ""


def test_failed_pass_fails_only_its_requests(caplog: pytest.LogCaptureFixture):
    """An exception in a pass is INTERNAL with a plain sentence and logged; the next request is answered."""
    mixer = tiny_mixer()
    with serve(mixer) as server:
        hook = mixer.net.register_forward_pre_hook(lambda *_: torch.zeros(2) @ torch.zeros(3))
        code, details = status_of(server)
        hook.remove()
        with connect(server.addresses["grpc"]) as stub:
            reply = ask(stub, random_call())

    assert code is grpc.StatusCode.INTERNAL
    assert details == "the mixer failed on this batch; the server's log has the reason"
    assert reply.mixer == "tiny"
    assert "pass_failed" in caplog.messages


def test_masks_that_are_not_numbers_are_never_sent():
    """NaN masks are INTERNAL and counted, rather than answered."""
    mixer = tiny_mixer()
    with serve(mixer) as server:
        break_weights(mixer)

        code, details = status_of(server)

    assert code is grpc.StatusCode.INTERNAL
    assert "masks that are not numbers" in details
    assert sample(server, "mixer_nonfinite_masks_total", model="tiny") == 4
    assert sample(server, "mixer_requests_total", model="tiny", version=mixer.version, method="Mix",
                  code="INTERNAL") == 1  # fmt: skip


def test_broken_mixer_does_not_become_ready():
    """A mixer whose masks are not numbers is refused when the server starts."""
    mixer = tiny_mixer()
    break_weights(mixer)

    with pytest.raises(ArtefactError, match="mixer 'tiny' makes masks that are not numbers"), serve(mixer):
        pass


def test_bug_at_the_edge_is_internal(caplog: pytest.LogCaptureFixture):
    """An unexpected exception in a method is INTERNAL with a plain sentence, never UNKNOWN, and logged."""
    mixer = tiny_mixer()
    with serve(mixer) as server:
        del mixer.spec

        code, details = status_of(server)

    assert code is grpc.StatusCode.INTERNAL
    assert details == "the server failed on this request; its log has the reason"
    assert "call_failed" in caplog.messages


def test_pass_that_never_ends_does_not_keep_the_server(gated: tuple[FrozenMixer, Gate]):
    """When draining takes longer than the exit timeout, callers are let go and the server says that it failed."""
    mixer, gate = gated
    with serve(mixer, exit_timeout_s=0.2) as server, connect(server.addresses["grpc"]) as stub:
        gate.shut()
        stuck = stub.Mix.future(request(), timeout=WAIT_S)
        gate.wait_until_held()

        is_drained = server.stop()

        assert is_drained is False
        assert stuck.code() in (grpc.StatusCode.CANCELLED, grpc.StatusCode.UNAVAILABLE)
        gate.open()
