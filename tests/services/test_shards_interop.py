"""Our shards are WebDataset's shards: the webdataset package reads ours, and we read what it writes."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from shard_making import encoded, noise
from webdataset.compat import WebDataset
from webdataset.writer import TarWriter

from services.shards.index import open_shards
from services.shards.reader import SampleReader
from services.shards.source_names import open_source
from services.shards.writer import write_shards

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:webdataset", "ignore::ResourceWarning")


def test_webdataset_reads_what_we_write(tmp_path: Path):
    """Every digit comes back from our shards, in order, as picture and label."""
    write_shards(open_source("digits", seed=0, digits_size=8), tmp_path / "digits", samples_per_shard=500)
    paths = sorted(map(str, (tmp_path / "digits").glob("digits-test-*.tar")))

    theirs = [(sample["png"], int(sample["cls"])) for sample in WebDataset(paths, shardshuffle=False)]

    with SampleReader(open_shards(paths)) as reader:
        ours = [(sample.image, sample.label) for sample in map(reader.read, range(len(theirs)))]
    assert theirs == ours
    assert np.asarray(Image.open(io.BytesIO(theirs[0][0]))).shape[:2] == (8, 8)


def test_we_read_what_webdataset_writes(tmp_path: Path):
    """A shard of webdataset's own writer is read by position."""
    path = tmp_path / "theirs-000000.tar"
    with TarWriter(str(path)) as sink:
        for number in range(5):
            sink.write({"__key__": f"{number:03d}", "png": encoded(noise(number)), "cls": number % 3})

    with SampleReader(open_shards(str(path))) as reader:
        samples = [reader.read(position) for position in range(5)]

    assert [sample.label for sample in samples] == [0, 1, 2, 0, 1]
    assert [sample.image for sample in samples] == [encoded(noise(number)) for number in range(5)]
