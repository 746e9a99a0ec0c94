"""An image classifier of Hugging Face, from scratch, trained on mixed batches and evaluated on plain ones.

python examples/python/huggingface_trainer.py --data SHARDS --mixer MIXER.safetensors
"""

import tempfile
from typing import Any

from setting import BATCH_SIZE, Pictures, normalise, open_mixer, parse_options, report
from torch import Tensor
from transformers import PrinterCallback, ResNetConfig, ResNetForImageClassification, TrainingArguments, set_seed

from samix.adapters.transformers import MixCollator, MixTrainer
from samix.mixing.presets import IMAGENET_MEAN, IMAGENET_STD


def as_features(image: Tensor, label: int) -> dict[str, Any]:
    """Name the parts of a sample as the models do."""
    return {"pixel_values": normalise(image), "labels": label}


def main(arguments: list[str] | None = None) -> list[float]:
    """Train; returns the loss of each step."""
    options = parse_options(__doc__, arguments)
    set_seed(0)
    config = ResNetConfig(
        embedding_size=32,
        hidden_sizes=[32, 64, 128, 256],
        depths=[2, 2, 2, 2],
        layer_type="basic",
    )
    config.num_labels = options.num_classes
    mix = MixCollator(
        open_mixer(options.mixer), num_classes=options.num_classes, seed=0, mean=IMAGENET_MEAN, std=IMAGENET_STD
    )
    with tempfile.TemporaryDirectory() as folder:
        settings = TrainingArguments(
            output_dir=folder,
            max_steps=options.steps,
            per_device_train_batch_size=BATCH_SIZE,
            per_device_eval_batch_size=BATCH_SIZE,
            learning_rate=1e-3,
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            log_level="error",
        )
        # before: trainer = Trainer(model=..., args=..., train_dataset=..., eval_dataset=...)
        trainer = MixTrainer(
            model=ResNetForImageClassification(config),
            args=settings,
            train_dataset=Pictures(options.data, "train", as_features),
            eval_dataset=Pictures(options.data, "test", as_features),
            mix=mix,
        )
        trainer.remove_callback(PrinterCallback)  # a line for each step
        trainer.train()
        print(f"loss on test pictures, which are not mixed: {trainer.evaluate()['eval_loss']:.4f}")
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    report(losses)
    return losses


if __name__ == "__main__":
    main()
