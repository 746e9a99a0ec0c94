"""The usual method: a policy has mixed the batch, the classifier learns the mixed labels."""

from samix.mixing.classifier import Classifier
from trainer.methods.method import Losses, Method
from trainer.methods.objective import ObjectiveConfig, classify
from trainer.prefetch import Prepared


class ClassifyMixed(Method):
    """Train a classifier on batches that somebody else mixed."""

    def __init__(self, classifier: Classifier, objective: ObjectiveConfig) -> None:
        super().__init__(classifier)
        self._objective = objective

    def forward(self, item: Prepared) -> Losses:
        """Classify the mixed images, and the clean ones where the objective asks for them."""
        loss = classify(self.classifier, item.mixed, item.clean, self._objective)
        return Losses(total=loss, classifier=loss.detach(), figures={})
