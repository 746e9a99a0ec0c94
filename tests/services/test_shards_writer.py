import json
import tarfile

import numpy as np
import pytest
from shard_making import encoded, noise
from sklearn.datasets import load_digits

from samix.errors import InputError
from services.shards.cli import main
from services.shards.decode import open_picture
from services.shards.index import open_shards
from services.shards.reader import Sample, SampleReader
from services.shards.sources import digits, image_folder
from services.shards.writer import write_shards


@pytest.fixture
def photos(tmp_path):
    """An image folder with two classes and five pictures."""
    for label, (name, count) in enumerate({"cat": 3, "dog": 2}.items()):
        folder = tmp_path / "photos" / name
        folder.mkdir(parents=True)
        for i in range(count):
            folder.joinpath(f"{i}.JPEG").write_bytes(encoded(noise(10 * label + i), "JPEG"))
    return tmp_path / "photos"


def contents(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_digits_are_real_and_split_by_class():
    """All 1797 digits appear once, a fifth of each class in the test split."""
    source = digits(seed=1, size=8)

    labels = {split: np.bincount([image.label for image in images]) for split, images in source.splits.items()}

    assert len({image.read() for images in source.splits.values() for image in images}) > 1790
    assert (labels["train"] + labels["test"]).sum() == 1797
    assert np.array_equal(labels["test"], (labels["train"] + labels["test"]) // 5)


def test_digits_keep_their_pixels():
    """At 8 pixels a digit's grey levels 0..16 become 0..255 exactly."""
    images, _ = load_digits(return_X_y=True)
    levels = {np.rint(image * 255 / 16).astype(np.uint8).tobytes() for image in images}
    stored = digits(seed=0, size=8).splits["test"][0]

    pixels = np.asarray(open_picture(Sample("a.tar", "k", stored.read(), stored.label)).load())

    assert np.array_equal(pixels[..., 0], pixels[..., 1])
    assert pixels[..., 0].tobytes() in levels


def test_an_image_folder_keeps_its_bytes(photos, tmp_path):
    """Every picture is in the shards once, its bytes untouched, under the number of its class in sorted order."""
    write_shards(image_folder(photos, seed=3), tmp_path / "out", samples_per_shard=2)

    shards = open_shards(str(tmp_path / "out" / "photos-train-*.tar"))
    with SampleReader(shards) as reader:
        stored = {(sample.image, sample.label) for sample in map(reader.read, range(shards.total))}

    assert shards.samples == (2, 2, 1)
    assert stored == {
        (path.read_bytes(), label) for label, name in enumerate(["cat", "dog"]) for path in (photos / name).iterdir()
    }


def test_hidden_files_are_no_pictures(photos):
    """What macOS and editors leave beside pictures (._0.jpg, .DS_Store) is not taken for one."""
    (photos / "cat" / "._0.jpg").write_bytes(b"\0\5\x16\7")

    source = image_folder(photos)

    assert len(source.splits["train"]) == 5


def test_the_summary_names_a_pattern_that_finds_the_shards(photos, tmp_path, capsys):
    """The pattern that is printed can be pasted, also where folder or set have brackets in their names."""
    root, out = photos.rename(tmp_path / "photos{1}"), tmp_path / "q[1]"

    status = main([f"imagefolder:{root}", "--out", str(out)])

    pattern = capsys.readouterr().out.split()[-1]
    assert status == 0
    assert open_shards(pattern).total == 5


def test_split_folders_become_splits(photos, tmp_path):
    """Folders called like splits are splits, with one numbering of classes over all of them."""
    root = tmp_path / "root"
    root.mkdir()
    photos.rename(root / "train")
    (root / "val" / "dog").mkdir(parents=True)
    (root / "val" / "dog" / "a.png").write_bytes(encoded(noise(50)))

    source = image_folder(root)

    assert source.classes == ("cat", "dog")
    assert {split: len(images) for split, images in source.splits.items()} == {"train": 5, "val": 1}
    assert source.splits["val"][0].label == 1


def test_equal_sources_give_equal_bytes(photos, tmp_path):
    """Writing twice gives the same files byte for byte; another seed another order."""
    write_shards(image_folder(photos, seed=3), tmp_path / "a", samples_per_shard=2)
    write_shards(image_folder(photos, seed=3), tmp_path / "b", samples_per_shard=2)
    write_shards(image_folder(photos, seed=4), tmp_path / "c", samples_per_shard=2)

    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    assert contents(tmp_path / "a") != contents(tmp_path / "c")


def test_the_index_describes_the_shards(tmp_path):
    """index.json lists splits, shards, sizes, checksums and classes, and other tools can read the tars."""
    index = write_shards(digits(size=8), tmp_path, samples_per_shard=1000)

    assert json.loads((tmp_path / "index.json").read_text()) == {**index, "classes": list(index["classes"])}
    assert [shard["samples"] for shard in index["splits"]["train"]["shards"]] == [1000, 442]
    with tarfile.open(tmp_path / "digits-test-000000.tar") as tar:
        member = tar.getmembers()[0]
    assert (member.name, member.mtime, member.uid, member.uname) == ("00000000.png", 0, 0, "")


def test_the_same_set_is_left_as_it_is(photos, tmp_path):
    """Asking for the set that is already there touches no file."""
    source, out = image_folder(photos), tmp_path / "out"
    write_shards(source, out)
    before = {path.name: path.stat().st_mtime_ns for path in out.iterdir()}

    write_shards(source, out)

    assert {path.name: path.stat().st_mtime_ns for path in out.iterdir()} == before


def test_a_damaged_set_is_not_taken_for_a_whole_one(photos, tmp_path):
    """If a shard of the set has gone, it is not silently kept."""
    source, out = image_folder(photos), tmp_path / "out"
    write_shards(source, out)
    next(out.glob("*.tar")).unlink()

    with pytest.raises(InputError, match="holds another set"):
        write_shards(source, out)


def test_another_set_is_replaced_only_on_request(photos, tmp_path):
    """A folder with other shards is refused; --overwrite leaves exactly the new set."""
    out = tmp_path / "out"
    write_shards(image_folder(photos), out, samples_per_shard=1)

    with pytest.raises(InputError, match=r"holds another set \(image folder .*, 1 per shard\); .* --overwrite"):
        write_shards(image_folder(photos), out, samples_per_shard=3)
    write_shards(image_folder(photos), out, samples_per_shard=3, overwrite=True)
    write_shards(image_folder(photos), tmp_path / "fresh", samples_per_shard=3)

    assert contents(out) == contents(tmp_path / "fresh")


@pytest.mark.parametrize("overwrite", [False, True])
def test_files_of_others_are_never_touched(photos, tmp_path, overwrite):
    """A folder that holds anything else is refused, --overwrite or not."""
    with pytest.raises(InputError, match=r"holds other files \(photos, 1 in all\); give an empty folder"):
        write_shards(image_folder(photos), tmp_path, overwrite=overwrite)


@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()])
@pytest.mark.parametrize("existed", [True, False])
def test_nothing_half_written_is_left(photos, tmp_path, error, existed):
    """An error or Ctrl-C in the middle leaves the target as it was."""
    out = tmp_path / "out"
    if existed:
        out.mkdir()
    written = []

    def stop_at_third():
        written.append(1)
        if len(written) == 3:
            raise error

    with pytest.raises(type(error)):
        write_shards(image_folder(photos), out, samples_per_shard=1, on_sample=stop_at_third)

    assert out.exists() == existed
    assert not existed or not list(out.iterdir())


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["digit"], "no source is called 'digit'; use digits, imagefolder:PATH, cifar10:PATH"),
        (["imagefolder:"], "no source is called 'imagefolder:'"),
        (["imagefolder:{tmp}/gone"], "gone is no folder; give the folder that holds one folder per class"),
        (["imagefolder:{tmp}/photos/cat"], "cat holds no folders; images belong in"),
        (["imagefolder:{tmp}"], "photos holds no image (jpg, jpeg, png, webp); remove it or fill it"),
        (["digits", "--digits-size", "0"], "digits cannot be 0 pixels wide"),
        (["digits", "--samples-per-shard", "0"], "samples_per_shard must be at least 1, got 0"),
    ],
)
def test_bad_input_is_one_sentence(photos, tmp_path, capsys, argv, words):
    """`samix shards` answers a wrong source or flag with one sentence and status 2, and writes nothing."""
    out = tmp_path / "out"

    status = main([word.format(tmp=tmp_path) for word in [*argv, "--out", str(out)]])

    assert status == 2
    assert words in capsys.readouterr().err
    assert not out.exists()


def test_the_verb_writes_and_says_what(photos, tmp_path, capsys):
    """`samix shards` prints what it wrote, with patterns to give to the trainer."""
    status = main([f"imagefolder:{photos}", "--out", str(tmp_path / "out"), "--samples-per-shard", "2"])

    assert status == 0
    out = capsys.readouterr().out
    assert "5 samples in 3 shards" in out
    assert f"{tmp_path}/out/photos-train-*.tar" in out
