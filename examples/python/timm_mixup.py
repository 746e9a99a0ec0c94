"""A loop written for `timm.data.Mixup`: only the line of the constructor differs.

python examples/python/timm_mixup.py --data SHARDS --mixer MIXER.safetensors
"""

import timm
import torch
from setting import Pictures, normalise, open_mixer, parse_options, report, training_loader

from samix.adapters.timm import Mixup


def main(arguments: list[str] | None = None) -> list[float]:
    """Train; returns the loss of each step."""
    options = parse_options(__doc__, arguments)
    torch.manual_seed(0)
    # before: mixup_fn = timm.data.Mixup(label_smoothing=0.1, num_classes=options.num_classes)
    mixup_fn = Mixup(open_mixer(options.mixer), label_smoothing=0.1, num_classes=options.num_classes, seed=0)
    model = timm.create_model("resnet18", num_classes=options.num_classes)
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-3)
    train_loss_fn = torch.nn.CrossEntropyLoss()  # takes soft targets, as timm's SoftTargetCrossEntropy does
    pictures = Pictures(options.data, "train", lambda image, label: (normalise(image), label))

    losses = []
    for images, labels in training_loader(pictures, options.steps):
        images, targets = mixup_fn(images, labels)
        loss = train_loss_fn(model(images), targets)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    report(losses)
    return losses


if __name__ == "__main__":
    main()
