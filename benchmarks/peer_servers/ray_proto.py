"""The messages of the service that Ray Serve hosts, made without generated code.

message MixRequest { bytes lam = 1; bytes partner = 2; bytes images = 3; }
message MixReply { bytes logits = 1; }
"""

# pyright: reportMissingImports=false
from typing import Any

import grpc
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

MIX = "/samix.bench.Mixing/Mix"
"""Full name of the one method."""


def _message_classes() -> dict[str, Any]:
    file = descriptor_pb2.FileDescriptorProto(name="samix_bench.proto", package="samix.bench", syntax="proto3")
    for message, fields in {"MixRequest": ("lam", "partner", "images"), "MixReply": ("logits",)}.items():
        made = file.message_type.add(name=message)
        for number, field in enumerate(fields, start=1):
            made.field.add(name=field, number=number, type="TYPE_BYTES", label="LABEL_OPTIONAL")
    pool = descriptor_pool.Default()
    pool.Add(file)
    names = (f"samix.bench.{message.name}" for message in file.message_type)
    return {name: message_factory.GetMessageClass(pool.FindMessageTypeByName(name)) for name in names}


_CLASSES = _message_classes()
MixRequest = _CLASSES["samix.bench.MixRequest"]
MixReply = _CLASSES["samix.bench.MixReply"]
for _made in (MixRequest, MixReply):  # so that pickle finds them, as it finds generated ones
    _made.__module__ = __name__


def add_servicer(servicer: Any, server: grpc.Server) -> None:
    """Register the service, as generated code would; Ray Serve puts its own functions in place of `servicer.Mix`."""
    handlers = {
        "Mix": grpc.unary_unary_rpc_method_handler(
            servicer.Mix, request_deserializer=MixRequest.FromString, response_serializer=MixReply.SerializeToString
        )
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("samix.bench.Mixing", handlers),))
