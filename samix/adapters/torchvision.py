"""Learned mixing where torchvision's `v2.MixUp` and `v2.CutMix` are used: on batches, in the loop or in `collate_fn`.

    mix = LearnedMix(load_mixer("mixer.safetensors"), num_classes=1000, seed=0)
    mix = v2.RandomChoice([mix, v2.CutMix(num_classes=1000)])  # beside others
    images, labels = mix(images, labels)

What changes: the images are mixed before `v2.Normalize`, or `mean=` and `std=` say what it did.
"""

from dataclasses import dataclass

from torch import Tensor

from samix.adapters.soft_mixing import SoftMixing
from samix.errors import BadBatch


@dataclass(kw_only=True, eq=False)
class LearnedMix(SoftMixing):
    """A transform of batches; for the settings see `SoftMixing`."""

    def __call__(self, *inputs: Tensor | tuple[Tensor, Tensor] | list[Tensor]) -> tuple[Tensor, Tensor]:
        """Mix `(images, labels)`, given as two arguments or as one pair; see `SoftMixing.mix`.

        Raises:
            BadBatch: if it is no pair of tensors, or a tensor is not what it should be.
            MixerError: if a remote mixer could not answer.
        """
        pair = inputs[0] if len(inputs) == 1 and isinstance(inputs[0], tuple | list) else inputs
        if len(pair) != 2 or not all(isinstance(part, Tensor) for part in pair):
            kinds = ", ".join(type(part).__name__ for part in pair)
            raise BadBatch(f"give a batch as images and labels, two tensors, got ({kinds}); mix after default_collate")
        images, labels = pair
        assert isinstance(images, Tensor)
        assert isinstance(labels, Tensor)
        return self.mix(images, labels)
