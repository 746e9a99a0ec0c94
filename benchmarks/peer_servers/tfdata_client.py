"""A consumer of tf.data service, as its guide writes one, with compression off: random batches stay raw anyway."""

# pyright: reportMissingImports=false, reportMissingModuleSource=false
import tensorflow as tf
from closed_loop import Call, run
from mix_batch import IMAGES_SHAPE, NUM_IMAGES

_BATCHES = 8
"""Batches that the worker makes once and keeps in memory."""


def make_caller(address: str) -> Call:
    """Begin to read."""
    batches = iter(_dataset(address))

    def call() -> None:
        images, labels = next(batches)
        if images.shape != IMAGES_SHAPE or labels.shape != (NUM_IMAGES,):
            raise ValueError(f"the batch must be {IMAGES_SHAPE}, got {images.shape}")

    return call


def _dataset(address: str) -> tf.data.Dataset:
    made = tf.data.Dataset.range(_BATCHES).map(_make_batch).cache().repeat()
    return made.apply(
        tf.data.experimental.service.distribute(
            processing_mode=tf.data.experimental.service.ShardingPolicy.OFF,
            service=f"grpc://{address}",
            compression=None,
        )
    ).prefetch(tf.data.AUTOTUNE)


def _make_batch(number: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    seed = tf.stack([number, 0])
    words = tf.random.stateless_uniform(IMAGES_SHAPE, seed, 0, 256, tf.int32)
    return tf.cast(words, tf.uint8), tf.range(NUM_IMAGES, dtype=tf.int64)


if __name__ == "__main__":
    run(make_caller)
