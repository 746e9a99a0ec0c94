import json
import tarfile
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from shard_making import encoded, noise, real_data, write_noise_shards, write_tar

from samix.errors import ShardError
from services.shards.index import open_shards
from services.shards.patterns import escape, expand
from services.shards.reader import MAX_OPEN_SHARDS, SampleReader, count_classes
from services.shards.tar import scan_shard

IMAGE = encoded(noise(0))


def test_patterns_become_sorted_files(tmp_path):
    """Globs, braces, paths and lists of them name the same shards, sorted and each once."""
    pattern = write_noise_shards(tmp_path, [1, 1, 1])
    names = [f"noise-{i:06d}.tar" for i in range(3)]

    found = {
        "glob": expand(pattern),
        "braces": expand(str(tmp_path / "noise-{000000..000002}.tar")),
        "list": expand([str(tmp_path / names[2]), pattern]),
    }

    assert {key: [Path(address).name for address in addresses] for key, addresses in found.items()} == dict.fromkeys(
        found, names
    )


@pytest.mark.parametrize(
    ("pattern", "words"),
    [
        ("gone-*.tar", r"no shard matches '.*gone-\*.tar' \(seen from .*\); check the path"),
        ("noise-{000000..000009}.tar", r"no shard matches '.*noise-000001.tar'"),
        ("", "is a folder; name its shards, for example '.*/\\*.tar'"),
        ("s3://bucket/a.tar", "got '.*s3://bucket/a.tar'; write the command that prints one, for example 'pipe:aws s3"),
        ("noise-{0..1.tar", "unbalanced braces"),
    ],
)
def test_a_pattern_that_names_nothing_is_refused(tmp_path, pattern, words):
    """Every part of a pattern must name a local file; the message holds the pattern and the cure."""
    write_noise_shards(tmp_path, [1])

    with pytest.raises(ShardError, match=words):
        open_shards(f"{tmp_path}/{pattern}")


@pytest.mark.parametrize("folder", ["q[1]", "q{a,b}", "q{", "what?*", "a\\b"])
def test_a_path_that_exists_is_taken_literally(tmp_path, folder):
    """A path to a shard names it, whatever a glob or braces would make of its folder."""
    tmp_path.joinpath(folder).mkdir()
    path = write_tar(tmp_path / folder / "a.tar", {"1.png": IMAGE, "1.cls": b"1"})

    assert expand(str(path)) == [str(path)]


def test_braces_may_stand_in_a_folder_with_brackets(tmp_path):
    """What braces expand to is taken literally too where it exists."""
    tmp_path.joinpath("q[1]").mkdir()
    write_noise_shards(tmp_path / "q[1]", [1, 1])

    assert len(expand(f"{tmp_path}/q[1]/noise-{{000000..000001}}.tar")) == 2


@given(name=st.text("ab[]*?{},.!-\\", min_size=1, max_size=8).filter(lambda name: name not in (".", "..")))
def test_an_escaped_folder_holds_its_shards(tmp_path_factory, name):
    """A pattern inside an escaped folder finds the shards of exactly that folder."""
    root = tmp_path_factory.mktemp("root")
    for folder in {name, "a", "ab"}:
        root.joinpath(folder).mkdir()
        root.joinpath(folder, "x-0.tar").touch()

    assert expand(f"{escape(root / name)}/x-*.tar") == [str(root / name / "x-0.tar")]


@pytest.mark.parametrize("layout", ["ours", "list per split"])
def test_counts_come_from_the_index(tmp_path, layout):
    """Sample counts are taken from index.json in every layout in use, and from the headers of unlisted shards."""
    pattern = write_noise_shards(tmp_path, [3, 2, 4])
    entries = [
        {"shard": path.name, "samples": count, "bytes": path.stat().st_size}
        for path, count in zip(map(Path, expand(pattern)), [3, 2], strict=False)
    ]
    splits = {"train": {"samples": 5, "shards": entries}} if layout == "ours" else {"train": entries, "test": []}
    tmp_path.joinpath("index.json").write_text(json.dumps({"splits": splits}))

    shards = open_shards(pattern)

    assert shards.samples == (3, 2, 4)
    assert shards.total == 9


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"bytes": 7}, r"is \d+ bytes, its index says 7; truncated\?"),
        ({"samples": "many"}, "gives 'many' samples for noise-000000.tar"),
        ({"samples": 9}, "holds 2 samples, its index says 9; write the index again"),
    ],
)
def test_an_index_that_disagrees_is_refused(tmp_path, change, words):
    """An index that does not fit its shard is an error that names both numbers."""
    pattern = write_noise_shards(tmp_path, [2])
    entry = {"shard": "noise-000000.tar", "samples": 2, **change}
    tmp_path.joinpath("index.json").write_text(json.dumps({"splits": {"train": [entry]}}))

    with pytest.raises(ShardError, match=words), SampleReader(open_shards(pattern)) as reader:
        reader.read(0)


@pytest.mark.parametrize("pattern", ["noise-*.tar", "{other,noise}-*.tar", "*.tar"])
def test_a_listed_shard_that_a_glob_cannot_find_is_refused(tmp_path, monkeypatch, pattern):
    """A set of which a shard was lost is not silently smaller: the index tells."""
    monkeypatch.chdir(tmp_path)
    write_noise_shards(tmp_path, [2, 3, 4])
    write_tar(tmp_path / "other-0.tar", {"0.png": IMAGE, "0.cls": b"0"})
    counts = {"noise-000000.tar": 2, "noise-000001.tar": 3, "noise-000002.tar": 4, "other-0.tar": 1, "val-0.tar": 1}
    entries = [{"shard": name, "samples": count} for name, count in counts.items() if pattern != "*.tar" or count > 1]
    tmp_path.joinpath("index.json").write_text(json.dumps({"splits": {"train": entries}}))
    whole = open_shards(pattern)
    (tmp_path / "noise-000001.tar").unlink()

    with pytest.raises(ShardError, match=r"noise-000001.tar is not there, but the index beside it lists it \(1 such"):
        open_shards(pattern)

    assert open_shards("noise-{000000,000002}.tar").samples == (2, 4)
    assert open_shards(pattern, tolerant=True).samples == whole.samples


def test_a_damaged_index_is_refused(tmp_path):
    """An index that is no JSON is an error with a cure."""
    pattern = write_noise_shards(tmp_path, [2])
    tmp_path.joinpath("index.json").write_text("{")

    with pytest.raises(
        ShardError, match=r"index.json is not JSON .*; write it again with `samix shards`, or delete it"
    ):
        open_shards(pattern)


def test_samples_are_read_by_position(tmp_path):
    """Position p is sample p of all shards in the order of their names."""
    shards = open_shards(write_noise_shards(tmp_path, [3, 1, 2]))

    with SampleReader(shards) as reader:
        samples = [reader.read(position) for position in (5, 0, 3)]

    assert [(Path(sample.shard).name, sample.key, sample.label) for sample in samples] == [
        ("noise-000002.tar", "0005", 2),
        ("noise-000000.tar", "0000", 0),
        ("noise-000001.tar", "0003", 0),
    ]
    assert samples[0].image == encoded(noise(5))


def test_a_reader_holds_few_files_open(tmp_path):
    """However many shards are read, only a bounded number is open."""
    shards = open_shards(write_noise_shards(tmp_path, [1] * (MAX_OPEN_SHARDS + 6)))

    with SampleReader(shards) as reader:
        for position in [*range(shards.total), 0]:
            reader.read(position)

        assert len(reader._files) == MAX_OPEN_SHARDS
    assert not reader._files


def test_classes_are_counted_by_their_labels(tmp_path):
    """The number of classes is the largest label plus 1."""
    shards = open_shards(write_noise_shards(tmp_path, [4, 4], num_classes=7))

    assert count_classes(shards) == 7


def test_counting_classes_reads_no_picture(tmp_path):
    """Labels are read alone: a set of any size is counted without its pictures."""
    size = 1 << 24
    shards = open_shards(str(write_tar(tmp_path / "a.tar", {"1.png": bytes(size), "1.cls": b"6"})))

    tracemalloc.start()
    classes = count_classes(shards)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert classes == 7
    assert peak < size // 2


@pytest.mark.parametrize("tar_format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_names_of_other_encodings_are_read_and_shown(tmp_path, tar_format):
    """A sample whose name is Latin-1 is read, and a message about it can be printed anywhere."""
    path, name = tmp_path / "a.tar", b"caf\xe9".decode(errors="surrogateescape")
    write_tar(path, {f"{name}.png": IMAGE, f"{name}.cls": b"x"}, tar_format=tar_format)

    with pytest.raises(ShardError) as refusal, SampleReader(open_shards(str(path))) as reader:
        reader.read(0)

    assert str(refusal.value).startswith(r"label of sample caf\xe9 of ")
    str(refusal.value).encode()


def test_a_broken_sample_of_another_encoding_is_refused_by_name(tmp_path):
    """Messages of the scan can be printed too."""
    name = b"caf\xe9".decode(errors="surrogateescape")
    lone = write_tar(tmp_path / "lone.tar", {f"{name}.png": IMAGE})
    twice = write_tar(tmp_path / "twice.tar", {f"{name}.png": IMAGE, f"{name}.jpg": IMAGE, f"{name}.cls": b"1"})

    with pytest.raises(ShardError, match=r"sample caf\\xe9 of .*lone.tar has no caf\\xe9.cls"):
        scan_shard(lone)
    with pytest.raises(ShardError, match=r"holds caf\\xe9.jpg and caf\\xe9.png for one sample"):
        scan_shard(twice)


def test_foreign_members_are_ignored(tmp_path):
    """Metadata, masks and nested names do not disturb a sample; extensions may be upper case."""
    image = encoded(noise(0))
    members = {"a/1.PNG": image, "a/1.json": b"{}", "a/1.seg.png": b"x", "a/1.cls": b" 2\n", "README": b"x"}
    path = write_tar(tmp_path / "a.tar", members)

    with SampleReader(open_shards(str(path))) as reader:
        sample = reader.read(0)

    assert (sample.key, sample.label, sample.image) == ("a/1", 2, image)


@pytest.mark.parametrize(
    ("members", "words"),
    [
        ({"1.png": IMAGE}, r"sample 1 of .*a.tar has no 1.cls"),
        ({"1.cls": b"1"}, r"sample 1 of .*a.tar has no 1.\(jpg\|jpeg\|png\|webp\)"),
        ({"1.png": IMAGE, "1.jpg": IMAGE, "1.cls": b"1"}, r"holds 1.jpg and 1.png for one sample; keep one"),
        ({"notes.txt": b"x"}, r"a.tar holds no samples"),
        (
            {"1.png": IMAGE, "1.cls": b"cat"},
            r"label of sample 1 of .*a.tar must be a class number in ASCII of at most 6 digits, got b'cat'; number",
        ),
        ({"1.png": IMAGE, "1.cls": b"-1"}, r"must be a class number .*, got b'-1'"),
        ({"1.png": IMAGE, "1.cls": b""}, r"must be a class number .*, got b''"),
        ({"1.png": IMAGE, "1.cls": b"99999999999"}, r"must be a class number .*, got b'99999999999'; number"),
        ({"1.png": IMAGE, "1.cls": b"9" * 5000}, r"must be a class number .*, got b'9{20}'; number"),
    ],
)
def test_a_broken_sample_is_refused_by_name(tmp_path, members, words):
    """A missing label or image, an ambiguous image or a label that is no number names shard, key and cure."""
    path = write_tar(tmp_path / "a.tar", members)

    with pytest.raises(ShardError, match=words), SampleReader(open_shards(str(path))) as reader:
        reader.read(0)


@pytest.mark.parametrize("kept", [0, 1, 511, 512, 700, 1024, 1536, 2048, 3071, 4000])
def test_a_truncated_shard_is_refused(tmp_path, kept):
    """A tar cut anywhere before its end mark is an error, also between two members."""
    write_noise_shards(tmp_path, [3])
    path = tmp_path / "noise-000000.tar"
    path.write_bytes(path.read_bytes()[:kept])

    with pytest.raises(ShardError, match="again"):
        scan_shard(path)


@pytest.mark.parametrize("size", [1 << 40, (1 << 63) - 1, 1 << 70, -1, -(1 << 70)])
def test_a_header_with_an_impossible_size_is_refused(tmp_path, size):
    """A member that claims more bytes than there are, or fewer than none, is an error of the shard."""
    member = tarfile.TarInfo("1.png")
    member.size = size
    path = tmp_path / "a.tar"
    path.write_bytes(member.tobuf(tarfile.GNU_FORMAT) + bytes(1024))

    with pytest.raises(ShardError, match="again"):
        scan_shard(path)


def test_a_shard_cut_while_it_is_read_is_refused(tmp_path):
    """A shard that shrinks after its headers were read gives an error, never half an image."""
    shards = open_shards(write_noise_shards(tmp_path, [2]))
    path = tmp_path / "noise-000000.tar"

    with SampleReader(shards) as reader:
        reader.read(0)
        path.write_bytes(path.read_bytes()[:1600])
        with pytest.raises(ShardError, match="ends inside sample 0001"):
            reader.read(1)


def test_a_label_cut_while_it_is_read_is_no_other_label(tmp_path):
    """A shard that shrinks inside a label of two digits gives an error, not the class of the first digit."""
    path = write_tar(tmp_path / "a.tar", {"0.png": IMAGE, "0.cls": b"12"})
    shards = open_shards(str(path))

    with SampleReader(shards) as reader:
        assert reader.read(0).label == 12
        path.write_bytes(path.read_bytes()[: path.read_bytes().index(b"12\x00") + 1])
        with pytest.raises(ShardError, match="ends inside sample 0"):
            reader.read(0)


def test_real_shards_hold_what_their_index_says():
    """The CIFAR-100 subset is found, counted and read."""
    shards = open_shards(str(real_data() / "cifar100-20c" / "*-train-*.tar"))

    with SampleReader(shards) as reader:
        labels = [reader.read(position).label for position in np.linspace(0, shards.total - 1, 50).astype(int).tolist()]

    assert shards.samples == (2500, 2500, 2500, 2500)
    assert set(labels) <= set(range(20))
    assert len(set(labels)) > 10
