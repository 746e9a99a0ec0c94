"""The official CIFAR archives as sources of `samix shards`."""

import dataclasses
import hashlib
import itertools
import os
import pickle
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from cifar_making import CLASSES, cifar_files, picture, python2_pickle, write_archive, write_folder
from hypothesis import given
from hypothesis import strategies as st

from samix.errors import InputError
from services.shards.archives import CIFAR10, CIFAR100, cifar
from services.shards.cli import main
from services.shards.decode import open_picture
from services.shards.index import open_shards
from services.shards.reader import SampleReader


class Attack:
    """Unpickles to a call of os.mkdir."""

    def __init__(self, target: Path) -> None:
        self._target = target

    def __reduce__(self):
        return os.mkdir, (str(self._target),)


def stored(pattern: str) -> set[tuple[bytes, int]]:
    with SampleReader(open_shards(pattern)) as reader:
        samples = map(reader.read, range(open_shards(pattern).total))
        return {(np.asarray(open_picture(sample).load()).tobytes(), sample.label) for sample in samples}


@pytest.mark.parametrize(("kind", "num_train"), [("cifar10", 20), ("cifar100", 4)])
@pytest.mark.parametrize("form", ["archive", "folder", "folder above"])
def test_an_archive_becomes_shards_without_loss(tmp_path, capsys, kind, num_train, form):
    """Every picture of the archive is in the shards with its pixels and fine label, in its split; names come along."""
    files = cifar_files(kind)
    inner = write_folder(tmp_path / "unpacked", kind, files)
    archive = write_archive(tmp_path / "a.tar.gz", kind, files)
    path = {"archive": archive, "folder": inner, "folder above": inner.parent}[form]

    status = main([f"{kind}:{path}", "--out", str(tmp_path / "out")])

    expected = [(picture(i).tobytes(), 7 * i % len(CLASSES[kind])) for i in range(num_train + 4)]
    assert status == 0, capsys.readouterr().err
    assert stored(str(tmp_path / "out" / f"{kind}-train-*.tar")) == set(expected[:num_train])
    assert stored(str(tmp_path / "out" / f"{kind}-test-*.tar")) == set(expected[num_train:])
    assert open_shards(str(tmp_path / "out" / "*.tar")).classes == tuple(CLASSES[kind])


def test_the_official_checksum_is_compared(tmp_path, caplog):
    """An archive with another checksum than the official one is read with a warning; the official one without."""
    path = write_archive(tmp_path / "a.tar.gz", "cifar10", cifar_files("cifar10"))
    md5 = hashlib.md5(path.read_bytes()).hexdigest()

    cifar(dataclasses.replace(CIFAR10, md5=md5), path)
    silent = [record.getMessage() for record in caplog.records]
    cifar(CIFAR10, path)

    assert silent == []
    assert [(record.getMessage(), vars(record)["md5"]) for record in caplog.records] == [("archive_differs", md5)]


@pytest.mark.parametrize("file", ["data_batch_3", "batches.meta"])
def test_an_archive_runs_no_code(tmp_path, file):
    """A pickle that asks for anything but numpy's arrays is refused, and what it asks for does not happen."""
    target = tmp_path / "made by the pickle"
    files = cifar_files("cifar10") | {file: pickle.dumps({"data": Attack(target)}, protocol=2)}
    path = write_archive(tmp_path / "a.tar.gz", "cifar10", files)

    with pytest.raises(InputError, match=rf"a.tar.gz, {file} is no file of CIFAR \(it asks for posix.mkdir\); fetch"):
        cifar(CIFAR10, path)

    assert not target.exists()


PIXELS = np.zeros((2, 3072), np.uint8)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is no file of CIFAR"),
        (b"\x80\x02garbage", "is no file of CIFAR"),
        (b"c_codecs\nencode\n(Vx\nVrot13\ntR.", "it asks for the codec rot13"),
        (python2_pickle([1, 2]), "holds a list, no table"),
        (
            python2_pickle({b"data": PIXELS[:, :9], b"fine_labels": [0, 1]}),
            r"no pixels of type uint8 and shape \[N, 3072",
        ),
        (python2_pickle({b"data": PIXELS.astype(float), b"fine_labels": [0, 1]}), "no pixels of type uint8"),
        (python2_pickle({b"data": PIXELS, b"fine_labels": [0]}), "no fine_labels for each of its 2 pictures"),
        (python2_pickle({b"data": PIXELS, b"fine_labels": [0, b"1"]}), "no fine_labels for each"),
        (python2_pickle({b"data": PIXELS, b"labels": [0, 1]}), "no fine_labels for each"),
        (python2_pickle({b"data": PIXELS, b"fine_labels": [0, 100]}), "has label 100, but 100 class names"),
        (python2_pickle({b"data": PIXELS, b"fine_labels": [0, -1]}), "has label -1"),
    ],
)
def test_a_file_that_is_no_batch_is_refused(tmp_path, content, words):
    """A file without pixels and labels of the right kind is named, with the cure."""
    inner = write_folder(tmp_path, "cifar100", cifar_files("cifar100") | {"train": content})

    with pytest.raises(InputError, match=f"train.*{words}.*; fetch the official archive"):
        cifar(CIFAR100, inner)


@given(cut=st.integers(0, 12000), byte=st.integers(0, 255))
def test_a_damaged_pickle_is_refused_or_read(tmp_path_factory, cut, byte):
    """Whatever a file is damaged to, it is read or refused with a sentence."""
    files = cifar_files("cifar100", per_file=1)
    content = files["train"]
    cut %= len(content)
    root = tmp_path_factory.mktemp("root")
    inner = write_folder(root, "cifar100", files | {"train": content[:cut] + bytes([byte]) + content[cut + 1 :]})

    with suppress(InputError):  # anything else fails the test
        assert len(cifar(CIFAR100, inner).splits["train"]) == 1


def test_an_archive_that_python_3_packed_is_read(tmp_path):
    """Pickles of today with the same content, bytes or text as keys, are the same source."""
    files = cifar_files("cifar100")
    contents = {name: pickle.loads(content, encoding="bytes") for name, content in files.items()}
    old = write_folder(tmp_path / "old", "cifar100", files)
    sources = [cifar(CIFAR100, old)]

    for protocol, recode in itertools.product((2, 5), (bytes, bytes.decode)):
        packed = {
            name: pickle.dumps({recode(key): value for key, value in content.items()}, protocol=protocol)
            for name, content in contents.items()
        }
        new = write_folder(tmp_path / f"{protocol}-{recode.__name__}", "cifar100", packed)
        sources.append(cifar(CIFAR100, new))

    assert len({source.fingerprint for source in sources}) == 1
    assert len({source.classes for source in sources}) == 1


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("gone", "gone is neither file nor folder; give the .tar.gz of cifar10 or its folder"),
        ("cut", "is no complete archive .*; fetch it again"),
        ("changed", "is no complete archive .*CRC check failed.*; fetch it again"),
        ("damaged", "is no complete archive .*while decompressing.*; fetch it again"),
        ("other", "lacks cifar-10-batches-py/batches.meta; fetch the python version of cifar10"),
        ("empty folder", "batches.meta cannot be read .*; unpack the archive again"),
    ],
)
def test_an_archive_that_cannot_be_used_is_named(tmp_path, change, words):
    """A missing, incomplete or other archive is one sentence."""
    path = tmp_path / "gone"
    if change == "cut":
        write_archive(path, "cifar10", cifar_files("cifar10"))
        path.write_bytes(path.read_bytes()[:20000])
    elif change in ("changed", "damaged"):
        stored, packed = cifar_files("cifar10"), {"test_batch": " ".join(map(str, range(99_999))).encode()}
        write_archive(path, "cifar10", stored if change == "changed" else packed)
        content = path.read_bytes()
        middle = len(content) // 2
        path.write_bytes(content[:middle] + b"\xff" * 20 + content[middle + 20 :])
    elif change == "other":
        write_archive(path, "cifar100", cifar_files("cifar100"))
    elif change == "empty folder":
        path.mkdir()

    with pytest.raises(InputError, match=words):
        cifar(CIFAR10, path)


def test_equal_archives_have_equal_fingerprints(tmp_path):
    """Packed and unpacked an archive is the same source; other pictures or another seed are another one."""
    files, others = cifar_files("cifar10"), cifar_files("cifar10")
    others["test_batch"] = others["data_batch_1"]
    packed = write_archive(tmp_path / "a.tar.gz", "cifar10", files)
    unpacked = write_folder(tmp_path / "a", "cifar10", files)
    other = write_folder(tmp_path / "b", "cifar10", others)

    fingerprints = [cifar(CIFAR10, path).fingerprint for path in (packed, unpacked, other)]

    assert fingerprints[0] == fingerprints[1]
    assert len({*fingerprints, cifar(CIFAR10, packed, seed=1).fingerprint}) == 3
