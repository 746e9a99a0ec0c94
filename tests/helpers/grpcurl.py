"""What grpcurl does, by the reflection of a server alone: its arguments from a shell, its calls with JSON."""

import json
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
from google.protobuf import descriptor_pool, json_format, message_factory
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

WAIT_S = 20.0

_RECORDER = """
set -euo pipefail
count=0
grpcurl() {
    printf '%s\\0' "$@" > "$RECORDS/$count.args"
    case " $* " in *" -d @ "*) cat > "$RECORDS/$count.stdin" ;; esac
    count=$((count + 1))
}
"""


def recorded(script: str, folder: Path) -> list[list[str]]:
    """Run a shell script, and return the arguments of each of its calls of grpcurl, with `-d @` filled in."""
    records = folder / "records"
    records.mkdir()
    shell = ["bash", "-c", f"RECORDS={shlex.quote(str(records))}\n{_RECORDER}\n{script}"]
    subprocess.run(shell, cwd=folder, check=True, timeout=60)
    calls = []
    for path in sorted(records.glob("*.args"), key=lambda path: int(path.stem)):
        stdin = path.with_suffix(".stdin")
        arguments = path.read_text().split("\0")[:-1]
        calls.append([stdin.read_text() if argument == "@" else argument for argument in arguments])
    return calls


class Reflected:
    """A server that is known by its reflection alone."""

    def __init__(self, channel: grpc.Channel) -> None:
        self._channel = channel
        self._database = ProtoReflectionDescriptorDatabase(channel)
        self._pool = descriptor_pool.DescriptorPool(self._database)

    def run(self, arguments: list[str]) -> Any:
        """Do what `grpcurl ARGUMENTS` prints: names, the file that describes a symbol, or the answers as JSON."""
        flags, words = _split(arguments)
        verb = words[1]
        if verb == "list":
            return sorted(self._database.get_services())
        if verb == "describe":
            return self._database.FindFileContainingSymbol(words[2])
        return self._call(verb, flags.get("-d", ""))

    def _call(self, name: str, text: str) -> list[dict[str, Any]]:
        service, _, method_name = name.partition("/")
        method = self._pool.FindServiceByName(service).FindMethodByName(method_name)
        kind, answer = (message_factory.GetMessageClass(each) for each in (method.input_type, method.output_type))
        requests = [json_format.ParseDict(message, kind()) for message in _messages(text)] or [kind()]
        assert method.client_streaming or len(requests) == 1
        codec = (kind.SerializeToString, answer.FromString)
        if method.client_streaming:
            answers = self._channel.stream_stream(f"/{name}", *codec)(iter(requests), timeout=WAIT_S)
            return [json_format.MessageToDict(message) for message in answers]
        return [json_format.MessageToDict(self._channel.unary_unary(f"/{name}", *codec)(requests[0], timeout=WAIT_S))]


def _split(arguments: list[str]) -> tuple[dict[str, str], list[str]]:
    flags, words, rest = {}, [], iter(arguments)
    for argument in rest:
        if argument == "-plaintext":
            continue
        if argument.startswith("-"):
            flags[argument] = next(rest)
        else:
            words.append(argument)
    return flags, words


def _messages(text: str) -> Iterator[dict[str, Any]]:
    decoder, text = json.JSONDecoder(), text.strip()
    while text:
        message, end = decoder.raw_decode(text)
        yield message
        text = text[end:].lstrip()
