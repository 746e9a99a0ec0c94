"""The tensors of a mixer, as the Open Inference Protocol names and types them."""

from dataclasses import dataclass

import numpy as np

from samix.inference.v2 import inference_pb2 as pb


@dataclass(frozen=True, kw_only=True, slots=True)
class Datatype:
    """What a tensor's values are."""

    name: str
    """In requests and answers."""
    number: pb.DataType
    """In a model's configuration."""
    dtype: np.dtype
    """In memory, little endian."""


UINT8 = Datatype(name="UINT8", number=pb.TYPE_UINT8, dtype=np.dtype(np.uint8))
INT32 = Datatype(name="INT32", number=pb.TYPE_INT32, dtype=np.dtype("<i4"))
INT64 = Datatype(name="INT64", number=pb.TYPE_INT64, dtype=np.dtype("<i8"))
FP16 = Datatype(name="FP16", number=pb.TYPE_FP16, dtype=np.dtype("<f2"))
FP32 = Datatype(name="FP32", number=pb.TYPE_FP32, dtype=np.dtype("<f4"))
BYTES = Datatype(name="BYTES", number=pb.TYPE_STRING, dtype=np.dtype(object))


@dataclass(frozen=True, kw_only=True, slots=True)
class TensorSpec:
    """A tensor that goes in or comes out."""

    name: str
    """Of the tensor."""
    datatypes: tuple[Datatype, ...]
    """That it may have; the first is the one to name."""
    shape: tuple[int, ...]
    """Sides; -1 is any."""
    is_optional: bool = False
    """Whether a request may do without it."""

    @property
    def datatype(self) -> Datatype:
        """The one to name."""
        return self.datatypes[0]


IMAGES = TensorSpec(name="images", datatypes=(UINT8,), shape=(-1, 3, -1, -1))
JPEG = TensorSpec(name="jpeg", datatypes=(BYTES,), shape=(-1,), is_optional=True)
LAM = TensorSpec(name="lam", datatypes=(FP32,), shape=(-1,), is_optional=True)
INDEX = TensorSpec(name="index", datatypes=(INT32, INT64), shape=(-1,), is_optional=True)
MASK_LOGITS = TensorSpec(name="mask_logits", datatypes=(FP16,), shape=(-1, 1, -1, -1))
MIXED = TensorSpec(name="mixed", datatypes=(UINT8,), shape=(-1, 3, -1, -1))

INPUTS = (IMAGES, JPEG, LAM, INDEX)
"""What goes in: `images` or `jpeg`, what stays of each in its mix, and the place of what it is mixed with."""
OUTPUTS = (MASK_LOGITS, MIXED, LAM, INDEX)
"""What comes out: mask logits of image i's share, mixed images, and the plan they were made by."""


def names_of(specs: tuple[TensorSpec, ...]) -> str:
    """List the names of tensors in a sentence."""
    return ", ".join(spec.name for spec in specs)
