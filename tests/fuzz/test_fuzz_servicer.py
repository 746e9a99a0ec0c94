"""The unary methods, health checks and reflection, over a real channel: nonsense is refused, and costs nothing."""

import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import grpc
import numpy as np
import pytest
from child_server import ChildServer
from framing import whole
from fuzzing import ANSWER_S, REFUSALS, Code, Tally, Volley, check_sentence, fuzz, generator
from google.protobuf.message import Message
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2
from mutations import NUMBERS, packed, spoil
from request_mutations import NAMES, spoil_request
from serving import random_call

from samix.framing import split
from samix.mixer.v1 import mixer_pb2 as pb
from samix.wire import CLIENT_KEY, encode_request

PATH = ("servicer", 0.3)

SERVICE = "/samix.mixer.v1.MixerService"
HEALTH = "/grpc.health.v1.Health"
REFLECTION = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"

CALL = random_call(2, side=16)
CALLS = [
    CALL,
    replace(CALL, wants_images=True),
    replace(CALL, wants_images=True, image_dtype=np.dtype(np.float16), priority=3),
    replace(CALL, pixels=np.full((2, 3, 16, 16), 0.5, np.float32), priority=1),
]
REQUESTS = [whole(encode_request(call)) for call in CALLS]
LISTED = pb.ListMixersRequest()
REFLECTED = [
    reflection_pb2.ServerReflectionRequest(list_services=""),
    reflection_pb2.ServerReflectionRequest(file_by_filename="samix/mixer/v1/mixer.proto"),
    reflection_pb2.ServerReflectionRequest(file_containing_symbol="samix.mixer.v1.MixRequest"),
    reflection_pb2.ServerReflectionRequest(all_extension_numbers_of_type="samix.mixer.v1.MixRequest"),
    reflection_pb2.ServerReflectionRequest(
        file_containing_extension=reflection_pb2.ExtensionRequest(containing_type="samix.mixer.v1.MixRequest")
    ),
]


class Unary:
    """Draws calls of the unary methods."""

    def __init__(self, channel: grpc.Channel, volley: Volley) -> None:
        self._volley = volley
        methods = ("Mix", "GetMixer", "ListMixers")
        self._methods = {name: channel.unary_unary(f"{SERVICE}/{name}").future for name in methods}
        self._check = channel.unary_unary(f"{HEALTH}/Check")
        self._watch = channel.unary_stream(f"{HEALTH}/Watch")
        self._reflection = channel.stream_stream(REFLECTION)

    def mix(self, number: int, rng: random.Random) -> None:
        request = pb.MixRequest()
        request.CopyFrom(rng.choice(REQUESTS))
        if rng.random() < 0.6:
            spoil_request(request, rng)
        data = request.SerializeToString()
        if rng.random() < 0.5:
            data = spoil(data, rng)
        may_end = REFUSALS | {Code.UNAVAILABLE}  # of leases that are no more
        if rng.random() < 0.01:
            data, may_end = _oversized(rng), may_end | {Code.RESOURCE_EXHAUSTED}
        settings: dict[str, Any] = {}
        if rng.random() < 0.1:
            settings["metadata"] = [(CLIENT_KEY, "client-" * rng.randint(0, 100) + str(number))]
        if rng.random() < 0.02:
            settings["timeout"], may_end = rng.choice((1e-3, 5e-3)), may_end | {Code.DEADLINE_EXCEEDED}
        hangs_up = rng.random() < 0.02
        may_end |= {Code.CANCELLED} if hangs_up else set()
        call = self._volley.fire(number, data, self._methods["Mix"], may_end=may_end, check=_check_mix, **settings)
        if hangs_up:
            call.cancel()

    def get_mixer(self, number: int, rng: random.Random) -> None:
        data = pb.GetMixerRequest(name=rng.choice(("", "tiny", *NAMES))).SerializeToString()
        check = _parses_as(pb.GetMixerResponse)
        self._volley.fire(number, _spoiled(data, rng), self._methods["GetMixer"], check=check)

    def list_mixers(self, number: int, rng: random.Random) -> None:
        data = _spoiled(LISTED.SerializeToString(), rng)
        self._volley.fire(number, data, self._methods["ListMixers"], check=_parses_as(pb.ListMixersResponse))

    def check_health(self, _number: int, rng: random.Random) -> str:
        data = _health_request(rng)
        try:
            answer = self._check(data, timeout=ANSWER_S)
        except grpc.RpcError as error:
            return _code_of(error, needs_sentence=False)  # that of the health library has none where it knows no such
        health_pb2.HealthCheckResponse.FromString(answer)
        return "OK"

    def watch_health(self, _number: int, rng: random.Random) -> str:
        call = self._watch(_health_request(rng), timeout=ANSWER_S)
        try:
            health_pb2.HealthCheckResponse.FromString(next(call))
        except grpc.RpcError as error:
            return _code_of(error)
        finally:
            call.cancel()
        return "OK"

    def reflect(self, _number: int, rng: random.Random) -> str:
        requests = [rng.choice(REFLECTED) for _ in range(rng.randint(0, 3))]
        messages = [_spoiled(request.SerializeToString(), rng) for request in requests]
        try:
            for answer in self._reflection(iter(messages), timeout=ANSWER_S):
                reflection_pb2.ServerReflectionResponse.FromString(answer)
        except grpc.RpcError as error:
            return _code_of(error)
        return "OK"


def _spoiled(data: bytes, rng: random.Random) -> bytes:
    return spoil(data, rng) if rng.random() < 0.7 else data


def _health_request(rng: random.Random) -> bytes:
    name = rng.choice(("", "model/tiny", "samix.mixer.v1.MixerService", str(rng.random()), *NAMES))
    return _spoiled(health_pb2.HealthCheckRequest(service=name).SerializeToString(), rng)


def _oversized(rng: random.Random) -> bytes:
    """Make a message around the largest size, of bytes that are nothing, or as many numbers as fit into it."""
    size = rng.choice(((4 << 20) - 100, (4 << 20) + 1, 1 << 18, 1 << 19))
    return packed(rng.choice((1, 5, 6, 7, 8, 10, 15, 99)), bytes((rng.choice(NUMBERS) % 128,)) * size)


def _check_mix(answer: bytes) -> None:
    response = split(pb.MixResponse, answer).message
    logits = np.frombuffer(response.mask_logits, "<f2")
    assert response.mixer == "tiny"
    assert np.isfinite(logits).all()
    assert len(logits) == np.prod(response.mask_shape)


def _parses_as(kind: type[Message]) -> Callable[[bytes], None]:
    return lambda answer: kind.FromString(answer) and None


def _code_of(error: grpc.RpcError, *, needs_sentence: bool = True) -> str:
    assert isinstance(error, grpc.Call)
    assert error.code() in (Code.INVALID_ARGUMENT, Code.NOT_FOUND), f"{error.code()}: {error.details()}"
    if needs_sentence or error.code() is not Code.NOT_FOUND:
        check_sentence(error.details() or "", "")
    return error.code().name


@pytest.mark.timeout(0)
def test_unary_methods(server: ChildServer, channel: grpc.Channel, ask_well: Callable[[], bytes], tally: Tally):
    """Spoilt requests of every method are refused in time and with a sentence, and leave the server as it was."""
    volley = Volley(tally)
    calls = Unary(channel, volley)
    ways = [calls.mix] * 14 + [calls.get_mixer, calls.list_mixers, calls.check_health, calls.watch_health] * 2
    ways += [calls.reflect] * 3

    def send(number: int) -> None:
        rng = generator(tally.path, number)
        code = rng.choice(ways)(number, rng)
        if code is not None:  # it was answered at once
            tally.count(code)

    fuzz(server, tally, ask_well, send, volley.land)
