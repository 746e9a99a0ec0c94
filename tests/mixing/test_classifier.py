"""A classifier: a backbone behind its normalisation, with one head or two."""

import pytest
import torch
from learning import NUM_CLASSES, is_unchanged, learning, lively_classifier, random_images, snapshot

from samix.errors import ConfigError
from samix.mixing.backbone import BackboneSpec
from samix.mixing.classifier import Classifier
from samix.mixing.presets import CIFAR_MEAN, CIFAR_STD, HALF, TINY_RESNET

WIDE = BackboneSpec(name="wide_resnet10_1")


def build(spec: BackboneSpec = TINY_RESNET, *, seed: int = 0, clean_head: bool = False) -> Classifier:
    return Classifier.build(spec, NUM_CLASSES, mean=CIFAR_MEAN, std=CIFAR_STD, seed=seed, clean_head=clean_head)


def test_weights_come_from_the_seed_alone():
    """The same seed gives the same weights, another seed others, and the global random state is left as it was."""
    before = torch.get_rng_state()

    first, second, other = build(seed=5), build(seed=5), build(seed=6)

    assert is_unchanged(second, snapshot(first))
    assert not is_unchanged(other, snapshot(first))
    assert torch.equal(torch.get_rng_state(), before)


def test_images_are_normalised():
    """Images in [0, 1] go in; mean and standard deviation of each channel are the classifier's business."""
    classifier, images = build().eval(), random_images()

    logits = classifier(images)

    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (CIFAR_MEAN, CIFAR_STD))
    torch.testing.assert_close(logits, classifier.backbone((images - mean) / std))
    assert logits.shape == (8, NUM_CLASSES)


def test_one_head_classifies_everything():
    """Without a clean head, clean images are classified like mixed ones."""
    classifier, images = lively_classifier().eval(), random_images()

    heads = classifier.heads()

    assert list(heads) == ["mix"]
    assert torch.equal(heads["mix"](images), classifier.clean_logits(images))


@pytest.mark.parametrize("spec", [TINY_RESNET, WIDE], ids=lambda spec: spec.name)
def test_two_heads_share_the_backbone(spec: BackboneSpec):
    """The clean head looks at what the head of the backbone looks at, and the backbone's weights are the usual ones."""
    classifier, images = build(spec, clean_head=True).eval(), random_images()
    assert classifier.head_one is not None

    mixed, clean = (head(images) for head in classifier.heads().values())

    assert list(classifier.heads()) == ["mix", "one"]
    assert is_unchanged(build(spec), snapshot(classifier))
    assert (mixed - clean).abs().max() > 1e-3
    classifier.head_one.load_state_dict(classifier.backbone.fc.state_dict())  # type: ignore[union-attr]
    torch.testing.assert_close(classifier.clean_logits(images), mixed)


def test_the_clean_head_starts_as_published():
    """Weights N(0, 0.01) and no bias, as both heads of the public reference."""
    head = Classifier.build(TINY_RESNET, 1000, mean=HALF, std=HALF, seed=0, clean_head=True).head_one
    assert head is not None

    assert head.weight.std().item() == pytest.approx(0.01, rel=0.02)
    assert not head.bias.any()


def test_each_head_learns_from_its_own_images():
    """The loss of one head gives the other no gradient, and both give the backbone one."""
    classifier = lively_classifier(clean_head=True)
    mixed_head, clean_head = {"backbone.fc.weight", "backbone.fc.bias"}, {"head_one.weight", "head_one.bias"}
    learnt = []

    for head in classifier.heads().values():
        classifier.zero_grad()
        head(random_images()).square().sum().backward()
        learnt.append(learning(classifier))

    assert learnt[0] >= mixed_head
    assert learnt[1] >= clean_head
    assert learnt[0] - mixed_head == learnt[1] - clean_head == learnt[0] & learnt[1]


@pytest.mark.parametrize(
    ("name", "sentence"),
    [("torchvision/resnet18", "TorchvisionBackbone takes no second head"), ("resnet1", "no backbone 'resnet1'")],
)
def test_refuses(name: str, sentence: str):
    """A backbone nobody knows, or that hides what its head looks at, is refused with a sentence."""
    with pytest.raises(ConfigError, match=sentence):
        build(BackboneSpec(name=name), clean_head=True)
