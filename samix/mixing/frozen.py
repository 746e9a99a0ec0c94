"""A mixer that was trained before, in this process: encoder and mixing block in evaluation mode, one mask (SAMix^P)."""

import torch
from torch import Tensor, nn

from samix.errors import BadBatch, ConfigError
from samix.mixing.batch import MixedBatch, MixPlan, as_unit_float, check_images, check_labels
from samix.mixing.block import MixingBlock
from samix.mixing.checksum import mixer_checksum
from samix.mixing.encoder import Encoder, Normalise, feature_stride, num_feature_channels
from samix.mixing.in_process import InProcessMixer
from samix.mixing.plan import resolve_plan
from samix.mixing.render import compose
from samix.mixing.spec import MixerSpec

_IMAGES_AT_ONCE = 16
"""That a CPU encodes: what their layers pass on stays in its caches. 64 images of 224 px take a seventh less time, one
thread, in four parts (ResNet-18, EPYC 9004); 32 px images are indifferent."""


class MaskNet(nn.Module):
    """From images and a plan to mask logits: normalisation, encoder, mixing block."""

    def __init__(self, normalise: Normalise, encoder: Encoder, block: MixingBlock) -> None:
        super().__init__()
        self.normalise = normalise
        self.encoder = encoder
        self.block = block

    @classmethod
    def build(cls, spec: MixerSpec, *, seed: int = 0) -> "MaskNet":
        """Build with random weights; the global random state is left as it was.

        Raises:
            ConfigError: if the backbone or its stage does not exist, or the stride is another.
        """
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)  # not torch.manual_seed: that would reseed the GPUs too
            encoder = Encoder.build(spec.backbone, spec.stage)
            stride = feature_stride(encoder.backbone, spec.backbone, spec.stage)
            if spec.stride != stride:
                raise ConfigError(f"stage {spec.stage} of {spec.backbone.name} has stride {stride}, got {spec.stride}")
            channels = num_feature_channels(encoder.backbone, spec.stage)
            return cls(Normalise(spec.mean, spec.std), encoder, MixingBlock(spec.block, channels))

    def forward(self, images: Tensor, lam: Tensor, partner: Tensor) -> Tensor:
        """Predict logits [B, 1, h, w] for images that are uint8, or float in [0, 1]."""
        return self.block(self._encode(images), lam, partner)

    def _encode(self, images: Tensor) -> Tensor:
        if images.device.type != "cpu" or self.training:  # in training, batch norm looks at the whole batch
            return self.encoder(self.normalise(as_unit_float(images)))
        parts = images.split(_IMAGES_AT_ONCE)
        return torch.cat([self.encoder(self.normalise(as_unit_float(part))) for part in parts])


class FrozenMixer(InProcessMixer):
    """A pretrained mixer behind the `Mixer` protocol. Use `load_mixer` to read one from an artefact."""

    def __init__(self, net: MaskNet, spec: MixerSpec, *, name: str, sha256: str, device: torch.device) -> None:
        self.spec = spec
        self.name = name
        self.sha256 = sha256
        self.device = device
        self._net = net

    @property
    def version(self) -> str:
        """Short name of weights and settings: the first 12 hexadecimal digits of their checksum."""
        return self.sha256[:12]

    @property
    def net(self) -> MaskNet:
        """The network, in evaluation mode and without gradients."""
        return self._net

    @torch.inference_mode()
    def mask_logits(self, images: Tensor, plan: MixPlan, *, precision: torch.dtype = torch.float32) -> Tensor:
        """Predict the logits of image i's share.

        Args:
            images: uint8, or float in [0, 1], [B, 3, H, W], on any device.
            plan: what is mixed with what.
            precision: of the encoder's arithmetic; its weights and the mixing block stay float32. bfloat16 takes half
                the time where the processor knows it, for masks that are a little different.

        Returns:
            float32 [B, 1, h, w] on the mixer's device, within +-LOGIT_LIMIT. Rows do not depend on each other beyond
            their partner, up to the last bits that a kernel chosen by batch size may change.

        Raises:
            BadBatch: if the images are of a size this mixer does not take, or of another number than the plan's.
        """
        if len(plan) != len(images):
            raise BadBatch(f"the plan is for {len(plan)} images, got {len(images)}; draw one for this batch")
        self.spec.check_size(*images.shape[-2:])
        images, plan = images.to(self.device), plan.to(self.device)
        # Said either way: the masks are the same, whatever the caller trains in.
        with torch.autocast(self.device.type, precision, enabled=precision != torch.float32):
            return self._net(images, plan.lam, plan.partner)

    def _mix(
        self,
        images: Tensor,
        labels: Tensor | None,
        lam: float | Tensor | None,
        partner: Tensor | None,
        generator: torch.Generator | None,
    ) -> MixedBatch:
        check_images(images)
        check_labels(labels, len(images))
        plan = resolve_plan(len(images), lam=lam, partner=partner, generator=generator)
        return compose(images, labels, plan, self.mask_logits(images, plan), self.spec.rendering)


def random_mixer(spec: MixerSpec, *, seed: int, name: str, device: str = "cpu") -> FrozenMixer:
    """Make a mixer with random weights, for trials and benchmarks; the global random state is left as it was."""
    net = MaskNet.build(spec, seed=seed)
    return freeze(net, spec, name=name, sha256=mixer_checksum(spec.to_json(), net.state_dict()), device=device)


def freeze(net: MaskNet, spec: MixerSpec, *, name: str, sha256: str, device: str) -> FrozenMixer:
    """Put a network into evaluation mode, without gradients, on a device.

    Raises:
        ConfigError: if torch has no such device here.
    """
    target = _usable_device(device)
    net = net.eval().requires_grad_(False).to(target)
    return FrozenMixer(net, spec, name=name, sha256=sha256, device=target)


def _usable_device(name: str) -> torch.device:
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:  # an assertion where torch was built without CUDA
        reason = str(error).splitlines()[0]
        raise ConfigError(f"device {name!r} cannot be used here ({reason}); use 'cpu'") from error
