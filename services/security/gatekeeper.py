"""Tokens of gRPC calls: looked at before anything else of a call, once for each, however long its stream is.

gRPC asks on the one thread that serves all connections, so what is done there takes microseconds.
"""

import logging
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

import grpc

from services.security.access import Access, Denial, OnDenial
from services.security.tokens import Role

log = logging.getLogger(__name__)

HEALTH_SERVICE = "grpc.health.v1.Health"
_AUTHORIZATION = "authorization"
_UNIX = "unix:"


class Gatekeeper(grpc.ServerInterceptor):
    """Lets pass health checks, unix sockets (which this user alone may open), and whoever has the role of a service."""

    def __init__(self, access: Access, roles: Mapping[str, Role], on_denial: OnDenial) -> None:
        """Guard services.

        Args:
            access: knows the tokens.
            roles: needed for each service; of all others any token is asked for.
            on_denial: hears of every call that is refused; must be quick.
        """
        self._access = access
        self._roles: dict[str, frozenset[Role]] = {service: frozenset({role}) for service, role in roles.items()}
        self._on_denial = on_denial

    def intercept_service(self, continuation: Callable[[Any], Any], handler_call_details: Any) -> Any:
        """Answer with the handler of a method, or one that refuses. For gRPC, at every call."""
        handler = continuation(handler_call_details)
        path: str = handler_call_details.method
        service = path[1:].partition("/")[0]
        if service == HEALTH_SERVICE:
            return handler
        authorization = _authorization(handler_call_details.invocation_metadata)
        denial = self._access.judge(authorization, self._roles.get(service), service)
        return handler if denial is None else self._refusing(handler, path if handler else "", denial)

    def _refusing(self, handler: Any, path: str, denial: Denial) -> Any:
        def refuse(context: grpc.ServicerContext) -> NoReturn:
            self._on_denial(path.rpartition("/")[2], denial)
            log.warning("call_denied", extra={"peer": context.peer(), "method": path, "holder": denial.name})
            code = grpc.StatusCode.PERMISSION_DENIED if denial.is_known else grpc.StatusCode.UNAUTHENTICATED
            context.abort(code, denial.sentence)
            raise AssertionError("abort always raises")

        return _guarded(handler, refuse)


def _guarded(handler: Any, refuse: Callable[[grpc.ServicerContext], NoReturn]) -> Any:
    """Make a handler of the same kind that refuses whoever does not come over a unix socket.

    Whether somebody does, gRPC says only when the call is answered.
    """
    if handler is None:
        return grpc.stream_stream_rpc_method_handler(lambda _messages, context: refuse(context))
    name = f"{_kind(handler.request_streaming)}_{_kind(handler.response_streaming)}"
    behaviour = getattr(handler, name)

    def answer(request: Any, context: grpc.ServicerContext) -> Any:
        return behaviour(request, context) if context.peer().startswith(_UNIX) else refuse(context)

    make = getattr(grpc, f"{name}_rpc_method_handler")
    return make(answer, handler.request_deserializer, handler.response_serializer)


def _kind(is_streaming: bool) -> str:
    return "stream" if is_streaming else "unary"


def _authorization(metadata: Any) -> str:
    return next((value for key, value in metadata if key == _AUTHORIZATION and isinstance(value, str)), "")
