"""A loader whose `collate_fn` mixes, as torchvision's documentation has it for `v2.MixUp` and `v2.CutMix`.

python examples/python/torchvision_collate.py --data SHARDS --mixer MIXER.safetensors
"""

import torch
from setting import Pictures, open_mixer, parse_options, report, training_loader
from torch.nn.functional import cross_entropy
from torch.utils.data import default_collate
from torchvision.models import resnet18
from torchvision.transforms import v2

from samix.adapters.torchvision import LearnedMix


def main(arguments: list[str] | None = None) -> list[float]:
    """Train; returns the loss of each step."""
    options = parse_options(__doc__, arguments)
    torch.manual_seed(0)
    # before: mix = v2.MixUp(num_classes=options.num_classes)
    mix = LearnedMix(open_mixer(options.mixer), num_classes=options.num_classes, seed=0)
    cutmix_or_learned = v2.RandomChoice([v2.CutMix(num_classes=options.num_classes), mix])
    pictures = Pictures(options.data, "train", lambda image, label: (image / 255, label))
    loader = training_loader(
        pictures, options.steps, collate_fn=lambda batch: cutmix_or_learned(*default_collate(batch))
    )
    model = resnet18(num_classes=options.num_classes)
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-3)

    losses = []
    for images, targets in loader:
        loss = cross_entropy(model(images), targets)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    report(losses)
    return losses


if __name__ == "__main__":
    main()
