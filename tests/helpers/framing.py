"""Messages whole, as stock protobuf has them, and in their two parts, as our code has them."""

from typing import TypeVar

from google.protobuf.message import Message

from samix.framing import BULK_FIELD, Framed, split

MessageT = TypeVar("MessageT", bound=Message)


def whole(framed: Framed[MessageT]) -> MessageT:
    """Put the bulk bytes into their field, by the protobuf runtime alone."""
    message = type(framed.message)()
    message.CopyFrom(framed.message)
    field = message.DESCRIPTOR.fields_by_number.get(BULK_FIELD)
    if field is not None:
        setattr(message, field.name, bytes(framed.bulk))
    return message


def parts(message: MessageT) -> Framed[MessageT]:
    """Read what a stock client or server would send."""
    return split(type(message), message.SerializeToString())
