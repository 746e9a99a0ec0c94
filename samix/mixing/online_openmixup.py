"""Co-training as the public reference computes it, for numbers that are to be compared with the published ones.

What differs from the papers, and stands below method by method:

* the mixer's loss is the plain mixed cross-entropy: the eta-balanced loss has no effect in the reference (B1);
* mean and variance of masks are taken over the whole batch, the variance counts twice (B6, B7);
* masks are adjusted to the mixer's lam instead of the classifier's (B3);
* the momentum copy follows parameters only and runs in training mode, with batch-norm statistics of its own (B8).

Not repeated is the clean pass through layers behind the stage (B19): it moves running statistics that training never
reads; an evaluation of the momentum copy's heads does, and may differ there. The numbers in brackets are explained in
docs/samix.md.
"""

import torch
from torch import Tensor, nn

from samix.errors import ConfigError
from samix.mixing.block import BlockSpec, MixingBlock
from samix.mixing.classifier import Classifier
from samix.mixing.losses import mixed_cross_entropy
from samix.mixing.mixer_losses import MaskLossKind, batch_mask_loss
from samix.mixing.online import OnlineMixer
from samix.mixing.online_config import OnlineConfig
from samix.mixing.plan import derive_seed
from samix.mixing.spec import MixerSpec


class OpenMixupOnlineMixer(OnlineMixer):
    """A mixer in training, bug for bug."""

    def __init__(self, spec: MixerSpec, config: OnlineConfig, classifier: Classifier, block: MixingBlock) -> None:
        super().__init__(spec, config, classifier, block)
        self._mask_kind: MaskLossKind = "L1+Variance" if config.mask_variance else "L1"

    def train(self, mode: bool = True) -> "OpenMixupOnlineMixer":
        """Switch block and momentum copy."""
        nn.Module.train(self, mode)
        return self

    def _classification_loss(self, logits: Tensor, labels_a: Tensor, labels_b: Tensor, lam: Tensor) -> Tensor:
        return mixed_cross_entropy(logits, labels_a, labels_b, lam)

    def _mask_loss(self, masks: Tensor, lam: Tensor) -> Tensor:
        return batch_mask_loss(masks, lam, self.config.mask_margin, self._mask_kind)

    def _followed(self) -> dict[str, Tensor]:
        return {name: parameter.detach() for name, parameter in self.classifier.named_parameters()}


def seeded_online_mixer(spec: MixerSpec, config: OnlineConfig, student: Classifier, *, seed: int) -> OnlineMixer:
    """Start a mixer whose block is drawn from a seed, the same everywhere; the global random state is left as it was.

    Raises:
        ConfigError: see `build_online_mixer`.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(derive_seed(seed, "mixing block"))
        return build_online_mixer(spec, config, student)


def build_online_mixer(spec: MixerSpec, config: OnlineConfig, student: Classifier) -> OnlineMixer:
    """Start a mixer in the mode its spec names; see `OnlineMixer.build`.

    Raises:
        ConfigError: if mode `openmixup` comes with settings that the reference does not have.
    """
    if spec.mode == "paper":
        return OnlineMixer.build(spec, config, student)
    _refuse_what_the_reference_lacks(spec.block, config)
    return OpenMixupOnlineMixer.build(spec, config, student)


def _refuse_what_the_reference_lacks(block: BlockSpec, config: OnlineConfig) -> None:
    """Refuse the papers' settings, so that what is named after the reference is comparable with it."""
    if config.per_sample_lam:
        raise ConfigError("mode 'openmixup' draws one lam per batch; set per_sample_lam to False")
    if block.lam_encoding == "multiply" and block.learnable_gamma:
        raise ConfigError("mode 'openmixup' has a fixed gamma; set block.learnable_gamma to False")
    if block.content == "nonlinear" and block.activation != "elu":
        raise ConfigError(f"mode 'openmixup' has ELU in its content, got {block.activation!r}; set block.activation")
    if config.mask_schedule == "linear":
        raise ConfigError("mode 'openmixup' has mask_schedule 'constant' or 'compounding', got 'linear'; set one")
