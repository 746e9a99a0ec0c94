"""A training loop of your own, on mixed batches that are made while it trains.

python examples/python/plain_loop.py --data SHARDS --mixer MIXER.safetensors
python examples/python/plain_loop.py --data SHARDS --mixer localhost:8001
"""

import torch
from setting import Pictures, open_mixer, parse_options, report, training_loader
from torchvision.models import resnet18

from samix.mixing.losses import mixed_cross_entropy


def main(arguments: list[str] | None = None) -> list[float]:
    """Train; returns the loss of each step."""
    options = parse_options(__doc__, arguments)
    torch.manual_seed(0)
    mixer = open_mixer(options.mixer)
    model = resnet18(num_classes=options.num_classes)
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-3)
    loader = training_loader(Pictures(options.data, "train"), options.steps)

    losses = []
    # before: for images, labels in loader:
    for mixed in mixer.stream(loader, seed=0, depth=4):
        assert mixed.labels_a is not None  # labels went in, so they come out
        assert mixed.labels_b is not None
        loss = mixed_cross_entropy(model(mixed.images), mixed.labels_a, mixed.labels_b, mixed.lam)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    report(losses)
    return losses


if __name__ == "__main__":
    main()
