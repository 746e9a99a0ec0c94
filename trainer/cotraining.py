"""Classifier and mixer while they learn from each other: both optimisers, one backward per step."""

from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.lr_scheduler import CosineAnnealingLR

from samix.errors import ConfigError
from samix.mixing.backbone import build_backbone
from samix.mixing.batch import MixedBatch, as_unit_float
from samix.mixing.losses import mixed_cross_entropy
from samix.mixing.online import MixerLoss, OnlineMixer
from samix.mixing.plan import draw_plan, generator_for
from services.shards.dataset import Batch
from trainer.optimise import build_schedule, build_sgd
from trainer.pretrain_config import PretrainConfig
from trainer.world import choose_device


class CoTraining:
    """A classifier (the student), and the mixer that makes its batches. Use `prepare` to make one."""

    def __init__(self, config: PretrainConfig, student: nn.Module, online: OnlineMixer, total_steps: int) -> None:
        self.online = online
        self.student = student
        self._config = config
        self._total_steps = total_steps
        self._device = next(student.parameters()).device
        learned = [parameter for parameter in online.block.parameters() if parameter.requires_grad]
        student_sgd = build_sgd(config.optimiser, student.parameters())
        mixer_adamw = torch.optim.AdamW(learned, lr=config.mixer_lr, weight_decay=0.0)
        self._optimisers = (student_sgd, mixer_adamw)
        self._schedules = (
            build_schedule(config.optimiser, student_sgd, total_steps),
            CosineAnnealingLR(mixer_adamw, total_steps, eta_min=config.mixer_lr / 10),
        )

    @classmethod
    def prepare(cls, config: PretrainConfig, num_classes: int, total_steps: int) -> Self:
        """Build both networks, with weights drawn from the config's seed.

        Raises:
            ConfigError: if there is no such backbone or device.
        """
        device = choose_device(config.device)
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(config.seed)
            student = build_backbone(config.mixer.backbone, num_classes)
            online = OnlineMixer.build(config.mixer, config.online, student, num_classes)
        return cls(config, student.to(device), online.to(device), total_steps)

    def step(self, batch: Batch, number: int) -> tuple[float, MixerLoss]:
        """Teach both from one batch; `number` counts the steps of the run from 0.

        Returns:
            The classifier's loss, and the mixer's.

        Raises:
            ConfigError: if the loss is no longer finite.
        """
        self.student.train()
        progress = number / self._total_steps
        generator = generator_for(self._config.seed, number)
        images, labels = batch.images.to(self._device), batch.labels.to(self._device)
        features = self.online.features(images)
        # One lam for each image: one for the whole batch would be cancelled by the content's batch norm.
        mixers_plan, students_plan = (
            draw_plan(len(batch), alpha=self._config.online.alpha, generator=generator, per_sample=True).to(
                self._device
            )
            for _ in range(2)
        )
        mixer_loss = self.online.loss(images, labels, features, mixers_plan, progress)
        mixed = self.online.mix(images, labels, features, students_plan)
        student_loss = self._student_loss(images, labels, mixed)
        loss = student_loss + mixer_loss.total  # the two share no parameter
        if not loss.isfinite():
            raise ConfigError(f"the loss became {loss.item()} at step {number}; lower --optimiser.lr or --mixer-lr")
        self._update(loss)
        self.online.block.project()
        self.online.follow(self.student, self.online.momentum_at(progress))
        return student_loss.item(), mixer_loss

    def _student_loss(self, images: Tensor, labels: Tensor, mixed: MixedBatch) -> Tensor:
        assert mixed.labels_b is not None
        scores = self.student(self.online.normalise(mixed.images))
        loss = mixed_cross_entropy(scores, labels, mixed.labels_b, mixed.lam)
        if self._config.clean_weight:
            clean = self.student(self.online.normalise(as_unit_float(images)))
            loss = loss + self._config.clean_weight * F.cross_entropy(clean, labels)
        return loss

    def _update(self, loss: Tensor) -> None:
        for optimiser in self._optimisers:
            optimiser.zero_grad(set_to_none=True)
        loss.backward()
        for optimiser in self._optimisers:
            optimiser.step()
        for schedule in self._schedules:
            schedule.step()
