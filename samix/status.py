"""The one table between our errors and gRPC statuses, read by the server one way and by the client the other way.

RESOURCE_EXHAUSTED means "again later" only when `google.rpc.RetryInfo` comes with it: gRPC itself answers the same code
for a message over the size limit, and no retry helps that one. With `google.rpc.QuotaFailure` it is this server that is
too small, for good.
"""

import logging
import math
from collections.abc import Iterable
from typing import TypeVar

import grpc
from google.protobuf import any_pb2, duration_pb2
from google.protobuf.message import DecodeError, Message
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

from samix.errors import (
    BadBatch,
    ConsumerTaken,
    DataLost,
    MixerBroken,
    MixerCancelled,
    MixerError,
    MixerNotFound,
    MixerOverloaded,
    MixerTimeout,
    MixerUnavailable,
    NotAuthenticated,
    NotPermitted,
    NotTheOwner,
    NotTrusted,
    RankTaken,
    StaleCursor,
    WrongState,
)
from samix.handshakes import connection_hint, trust_problem
from samix.mixer.v1 import mixer_pb2 as pb

log = logging.getLogger(__name__)

DetailT = TypeVar("DetailT", bound=Message)
Violation = pb.FieldViolation | error_details_pb2.BadRequest.FieldViolation

STATUS_OF: dict[type[MixerError], grpc.StatusCode] = {
    BadBatch: grpc.StatusCode.INVALID_ARGUMENT,
    MixerNotFound: grpc.StatusCode.NOT_FOUND,
    NotTrusted: grpc.StatusCode.UNAVAILABLE,  # never sent: gRPC's text tells it from the next
    MixerUnavailable: grpc.StatusCode.UNAVAILABLE,
    MixerOverloaded: grpc.StatusCode.RESOURCE_EXHAUSTED,
    MixerTimeout: grpc.StatusCode.DEADLINE_EXCEEDED,
    MixerCancelled: grpc.StatusCode.CANCELLED,
    MixerBroken: grpc.StatusCode.INTERNAL,
    WrongState: grpc.StatusCode.FAILED_PRECONDITION,
    StaleCursor: grpc.StatusCode.FAILED_PRECONDITION,  # read back as this one, which is also the other
    ConsumerTaken: grpc.StatusCode.ABORTED,
    RankTaken: grpc.StatusCode.ALREADY_EXISTS,
    NotAuthenticated: grpc.StatusCode.UNAUTHENTICATED,
    NotPermitted: grpc.StatusCode.PERMISSION_DENIED,
    NotTheOwner: grpc.StatusCode.PERMISSION_DENIED,  # read back as this one unless ErrorInfo says that a role lacks
    DataLost: grpc.StatusCode.DATA_LOSS,
}

_MAX_MESSAGE_BYTES = 1024  # sent three times, once percent-encoded; all metadata must stay below 8 KiB
_CODES: dict[int, grpc.StatusCode] = {code.value[0]: code for code in grpc.StatusCode}
_ROLE_LACKS = "ROLE_LACKS"  # of google.rpc.ErrorInfo
_DOMAIN = "samix"
_ERROR_OF = {status: error for error, status in STATUS_OF.items()}


def to_status(error: MixerError) -> grpc.Status:
    """Make the status a servicer aborts with, RetryInfo included (`context.abort_with_status`)."""
    code: int = STATUS_OF[type(error)].value[0]  # the number on the wire
    status = status_pb2.Status(code=code, message=_shortened(str(error)))
    if isinstance(error, MixerOverloaded):
        is_for_ever = error.retry_after_s == math.inf
        status.details.append(_quota_failure(status.message) if is_for_ever else _retry_info(error.retry_after_s))
    if isinstance(error, BadBatch) and error.field:
        status.details.append(_bad_request(error.field, status.message))
    if type(error) is NotPermitted:
        status.details.append(_packed(error_details_pb2.ErrorInfo(reason=_ROLE_LACKS, domain=_DOMAIN)))
    return rpc_status.to_status(status)


def from_rpc_error(error: grpc.RpcError, target: str) -> MixerError:
    """Translate what gRPC raised into our tree; `target` is the address that was asked, for the message."""
    assert isinstance(error, grpc.Call)  # every RpcError of a call is also the call
    code, sentence = error.code(), error.details() or "no details"
    if code is grpc.StatusCode.UNAVAILABLE:
        return _unavailable(sentence, target)
    if code is grpc.StatusCode.PERMISSION_DENIED and _detail(error, error_details_pb2.ErrorInfo):
        return NotPermitted(f"mixer at {target}: {sentence} ({code.name})")
    if code is grpc.StatusCode.RESOURCE_EXHAUSTED:
        info = _detail(error, error_details_pb2.RetryInfo)
        delay_s = None if info is None else max(info.retry_delay.ToNanoseconds() / 1e9, 0.0)
        if _detail(error, error_details_pb2.QuotaFailure):
            delay_s = math.inf
        return _to_error(code, sentence, target, retry_after_s=delay_s)
    request = _detail(error, error_details_pb2.BadRequest) if code is grpc.StatusCode.INVALID_ARGUMENT else None
    return _to_error(code, sentence, target, field=_first_field(request.field_violations if request else ()))


def to_refusal(error: MixerError) -> pb.Refusal:
    """Say the same as `to_status` about one batch of a stream."""
    refusal = pb.Refusal(code=STATUS_OF[type(error)].value[0], message=_shortened(str(error)))
    if isinstance(error, MixerOverloaded) and error.retry_after_s < math.inf:
        refusal.retry_after_ms = max(1, round(1000 * error.retry_after_s))
    if isinstance(error, BadBatch) and error.field:
        refusal.field_violations.add(field=error.field, description=refusal.message)
    return refusal


def from_refusal(refusal: pb.Refusal, target: str) -> MixerError:
    """Translate a refusal back; the other way round than `to_refusal`."""
    retry_after_s = refusal.retry_after_ms / 1000 if refusal.retry_after_ms else None
    code = _CODES.get(refusal.code, grpc.StatusCode.UNKNOWN)
    field = _first_field(refusal.field_violations)
    return _to_error(code, refusal.message or "no details", target, retry_after_s=retry_after_s, field=field)


def _to_error(
    code: grpc.StatusCode, sentence: str, target: str, *, retry_after_s: float | None = None, field: str | None = None
) -> MixerError:
    message = f"mixer at {target}: {sentence} ({code.name})"
    if code is grpc.StatusCode.INVALID_ARGUMENT:
        return BadBatch(message, field=field)
    if code is not grpc.StatusCode.RESOURCE_EXHAUSTED:
        return _ERROR_OF.get(code, MixerBroken)(message)
    if retry_after_s is None:
        return BadBatch(f"{message}; the message is over a size limit, send smaller batches")
    return MixerOverloaded(message, retry_after_s)


def _unavailable(details: str, target: str) -> MixerError:
    problem = trust_problem(details)
    if problem is not None:
        return NotTrusted(f"mixer at {target}: {problem} ({details})")
    hint = connection_hint(details)
    return MixerUnavailable(f"mixer at {target}: {f'{hint} ' if hint else ''}{details} (UNAVAILABLE)")


def _shortened(message: str) -> str:
    return message.encode()[:_MAX_MESSAGE_BYTES].decode(errors="ignore")


def _retry_info(delay_s: float) -> any_pb2.Any:
    delay = duration_pb2.Duration()
    delay.FromNanoseconds(round(delay_s * 1e9))
    packed = any_pb2.Any()
    packed.Pack(error_details_pb2.RetryInfo(retry_delay=delay))
    return packed


def _quota_failure(description: str) -> any_pb2.Any:
    violation = error_details_pb2.QuotaFailure.Violation(subject="memory", description=description)
    packed = any_pb2.Any()
    packed.Pack(error_details_pb2.QuotaFailure(violations=[violation]))
    return packed


def _packed(detail: Message) -> any_pb2.Any:
    packed = any_pb2.Any()
    packed.Pack(detail)
    return packed


def _bad_request(field: str, description: str) -> any_pb2.Any:
    violation = error_details_pb2.BadRequest.FieldViolation(field=field, description=description)
    packed = any_pb2.Any()
    packed.Pack(error_details_pb2.BadRequest(field_violations=[violation]))
    return packed


def _first_field(violations: Iterable[Violation]) -> str | None:
    return next((violation.field for violation in violations), None)


def _detail(call: grpc.Call, kind: type[DetailT]) -> DetailT | None:
    """Find the first of a status' details that is of this kind."""
    try:
        status = rpc_status.from_call(call)
        for detail in () if status is None else status.details:
            found = kind()
            if detail.Unpack(found):
                return found
    except (DecodeError, ValueError):  # details that cannot be read, or belong to another status, tell nothing
        log.warning("unreadable_status_details code=%s", call.code().name)
    return None
