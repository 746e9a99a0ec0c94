"""Artefacts: what is saved is what is loaded, and whatever else a file holds gives one sentence."""

import json
import resource
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from samix.errors import ArtefactError, ConfigError
from samix.mixing.artefact import check_artefact_path, load_mixer, read_provenance, save_artefact
from samix.mixing.backbone import BackboneSpec
from samix.mixing.batch import MixPlan
from samix.mixing.block import BlockSpec
from samix.mixing.checksum import mixer_checksum
from samix.mixing.frozen import FrozenMixer, random_mixer
from samix.mixing.presets import CIFAR_MEAN, CIFAR_STD, samix_spec, tiny_spec
from samix.mixing.spec import MixerSpec

PROVENANCE = {"data": "digits", "commit": "abc"}
NARROW = BackboneSpec(name="resnet18", stem="cifar", layers=(1, 1, 1, 1), channels=(16, 16, 16, 16))
SPECS = {
    "tiny": tiny_spec(),
    "automix": samix_spec(
        NARROW,
        mean=CIFAR_MEAN,
        std=CIFAR_STD,
        image_size=64,
        stage=1,
        block=BlockSpec(lam_encoding="concat", attention="cross", content="linear"),
        upsampling="nearest",
        lam_margin=0.0,
    ),
    "openmixup": samix_spec(
        NARROW,
        mean=CIFAR_MEAN,
        std=CIFAR_STD,
        image_size=32,
        block=BlockSpec(learnable_gamma=False, lam_curve=0.25, activation="elu", dropout=0.1),
    ),
}
damaged = settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(scope="module")
def mixer() -> FrozenMixer:
    return random_mixer(tiny_spec(), seed=0, name="tiny")


@pytest.fixture
def path(tmp_path: Path, mixer: FrozenMixer) -> Path:
    """A sound artefact."""
    target = tmp_path / "tiny.safetensors"
    save_artefact(target, mixer, PROVENANCE)
    return target


def some_logits(mixer: FrozenMixer) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(3, 3, 32, 32, generator=generator)
    return mixer.mask_logits(images, MixPlan(lam=torch.tensor([0.2, 0.5, 0.9]), partner=torch.tensor([1, 2, 0])))


def rewrite(path: Path, change: Callable[[dict[str, Any], dict[str, Tensor]], object]) -> None:
    """Let `change` edit the header and the weights of an artefact in place."""
    with safe_open(path, framework="pt") as file:
        header = json.loads(file.metadata()["samix"])
        weights = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a dict
    change(header, weights)
    save_file(weights, path, metadata={"samix": json.dumps(header)})


def seal(header: dict[str, Any], weights: dict[str, Tensor]) -> None:
    """Make the checksum fit, so that only the other checks can find what is wrong."""
    header["sha256"] = mixer_checksum(json.dumps(header["spec"], sort_keys=True), weights)


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS.keys())
def test_what_is_saved_is_what_is_loaded(tmp_path: Path, spec: MixerSpec) -> None:
    """A round trip keeps settings, name, version and provenance, and gives bit-equal masks."""
    saved = random_mixer(spec, seed=3, name="round trip é")

    save_artefact(tmp_path / "a.safetensors", saved, PROVENANCE)
    loaded = load_mixer(tmp_path / "a.safetensors")

    assert loaded.spec == spec
    assert (loaded.name, loaded.sha256) == (saved.name, saved.sha256)
    assert torch.equal(some_logits(loaded), some_logits(saved))
    assert read_provenance(tmp_path / "a.safetensors") == PROVENANCE


def test_loading_leaves_the_global_random_state_alone(path: Path) -> None:
    """Whether a run loads a mixer has no influence on what it draws next."""
    state = torch.get_rng_state()

    load_mixer(path)

    assert torch.equal(torch.get_rng_state(), state)


def test_a_loaded_mixer_evaluates_without_gradients(path: Path) -> None:
    """load_mixer returns a frozen network."""
    loaded = load_mixer(str(path))

    assert not any(module.training for module in loaded.net.modules())
    assert not any(parameter.requires_grad for parameter in loaded.net.parameters())


def test_the_checksum_knows_settings_weights_names_and_shapes(mixer: FrozenMixer) -> None:
    """Any change of a setting, value, name, shape or dtype makes another version; the order of the tensors does not."""
    weights, settings = mixer.net.state_dict(), mixer.spec.to_json()
    key = "encoder.backbone.bn1.weight"
    changes = [
        weights | {key: weights[key] + 1e-6},
        weights | {key: weights[key].view(4, -1)},
        weights | {key: weights[key].double()},
        weights | {"other": weights[key]},
    ]
    other_margin = replace(mixer.spec, rendering=replace(mixer.spec.rendering, lam_margin=0.1))

    sums = {mixer_checksum(settings, change) for change in changes} | {mixer_checksum(other_margin.to_json(), weights)}

    assert len(sums | {mixer.sha256}) == 6
    assert mixer_checksum(settings, dict(reversed(weights.items()))) == mixer.sha256


def test_saving_replaces_the_file_at_once(path: Path, mixer: FrozenMixer) -> None:
    """A reader that has the old file open keeps reading it whole, and no temporary file is left."""
    before = path.read_bytes()

    with path.open("rb") as reader:
        save_artefact(path, random_mixer(tiny_spec(), seed=1, name="new"), {})
        still_read = reader.read()

    assert still_read == before
    assert load_mixer(path).name == "new"
    assert list(path.parent.iterdir()) == [path]


def test_a_full_disk_leaves_the_old_file(path: Path) -> None:
    """When writing fails midway the old artefact stays as it was, and nothing else is left behind."""
    before = path.read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        with pytest.raises((SafetensorError, OSError)):
            save_artefact(path, random_mixer(tiny_spec(), seed=1, name="new"), {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


def test_where_nothing_can_be_written_is_said_early(tmp_path: Path) -> None:
    """A path without the suffix, without a folder, or that is one, is refused before hours of training."""
    (tmp_path / "folder.safetensors").mkdir()

    for name, complaint in {
        "mixer.pth": "ends in .safetensors, got",
        "no/folder/a.safetensors": "there is no folder",
        "folder.safetensors": "is a folder",
    }.items():
        with pytest.raises(ConfigError, match=complaint):
            check_artefact_path(tmp_path / name)


@pytest.mark.parametrize("name", ["absent.safetensors", ".", "a" * 300 + ".safetensors", "nul\0.safetensors"])
def test_a_path_without_a_file_is_refused(tmp_path: Path, name: str) -> None:
    """No file, a folder, or a name no file can have give a sentence with the path."""
    with pytest.raises(ArtefactError, match=r"there is no mixer at|is not a whole safetensors file"):
        load_mixer(tmp_path / name)


@damaged
@given(data=st.data())
def test_a_truncated_file_is_refused(path: Path, data: st.DataObject) -> None:
    """A copy that stopped anywhere is refused, naming the file."""
    whole = path.read_bytes()
    cut = path.with_name("cut.safetensors")
    cut.write_bytes(whole[: data.draw(st.integers(0, len(whole) - 1))])

    with pytest.raises(ArtefactError, match=r"cut\.safetensors is not a whole safetensors file"):
        load_mixer(cut)


@damaged
@given(data=st.data())
def test_a_flipped_bit_in_the_weights_is_found(path: Path, data: st.DataObject) -> None:
    """Any changed bit of the weights is refused."""
    raw = bytearray(path.read_bytes())
    start = 8 + int.from_bytes(raw[:8], "little")
    raw[data.draw(st.integers(start, len(raw) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    path.with_name("flipped.safetensors").write_bytes(raw)

    with pytest.raises(ArtefactError, match=r"have checksum|is not finite"):
        load_mixer(path.with_name("flipped.safetensors"))


@damaged
@given(data=st.data())
def test_a_flipped_byte_in_the_header_never_crashes(path: Path, data: st.DataObject) -> None:
    """A changed byte of the header gives a mixer or a sentence, and no other exception."""
    raw = bytearray(path.read_bytes())
    end = 8 + int.from_bytes(raw[:8], "little")
    raw[data.draw(st.integers(0, end - 1))] = data.draw(st.integers(0, 255))
    path.with_name("flipped.safetensors").write_bytes(raw)

    assert loads_or_is_refused(path.with_name("flipped.safetensors"))


@given(raw=st.binary(max_size=200))
@damaged
def test_random_bytes_are_no_artefact(tmp_path: Path, raw: bytes) -> None:
    """Whatever is no safetensors file is refused."""
    (tmp_path / "noise.safetensors").write_bytes(raw)

    with pytest.raises(ArtefactError, match=r"is not a whole safetensors file|holds tensors but no mixer settings"):
        load_mixer(tmp_path / "noise.safetensors")


def test_tensors_without_settings_are_refused(tmp_path: Path) -> None:
    """A safetensors file of something else is refused."""
    save_file({"weight": torch.ones(2)}, tmp_path / "other.safetensors")

    with pytest.raises(ArtefactError, match="holds tensors but no mixer settings"):
        load_mixer(tmp_path / "other.safetensors")


def set_spec(**changes: Any) -> Callable[[dict[str, Any], dict[str, Tensor]], object]:
    return lambda header, _weights: header["spec"].update(changes)


def set_header(**changes: Any) -> Callable[[dict[str, Any], dict[str, Tensor]], object]:
    return lambda header, _weights: header.update(changes)


DAMAGES: dict[str, tuple[Callable[[dict[str, Any], dict[str, Tensor]], object], str]] = {
    "newer format": (set_header(format=2), "artefact format 2, this version reads 1; upgrade"),
    "format of another kind": (set_header(format={"a": 1}), "artefact format"),
    "no spec": (lambda header, _: header.pop("spec"), "lack spec"),
    "no checksum": (lambda header, _: header.pop("sha256"), "lack sha256"),
    "checksum is a number": (set_header(sha256=5), "sha256 must be text, got 5"),
    "name is a list": (set_header(name=["a"]), "name must be"),
    "name is empty": (set_header(name=""), "name must be"),
    "name would break a log line": (set_header(name="a\nb"), "printable"),
    "name is no text": (set_header(name="\ud800"), "printable"),
    "provenance is a list": (set_header(provenance=[]), "provenance must map text to text"),
    "provenance holds a number": (set_header(provenance={"a": 1}), "provenance must map"),
    "spec is a list": (set_header(spec=[]), "spec must be an object, got"),
    "spec is nothing": (set_header(spec=None), "spec must be an object, got None"),
    "unknown setting": (set_spec(colour="red"), "unknown 'colour'"),
    "missing setting": (lambda header, _: header["spec"].pop("mean"), "spec lacks mean"),
    "stage is text": (set_spec(stage="2"), "spec.stage must be a whole number, got '2'"),
    "stage is true": (set_spec(stage=True), "spec.stage must be a whole number, got True"),
    "stage is no stage": (set_spec(stage=-7), "stage must be"),
    "stage is huge": (set_spec(stage=10**30), "stage must be"),
    "mean of two": (set_spec(mean=[0.5, 0.5]), "spec.mean must be a list of 3"),
    "mean is text": (set_spec(mean="abc"), "spec.mean must be a list"),
    "mean is not finite": (set_spec(mean=[0.5, float("nan"), 0.5]), r"spec.mean\[1\] must be a finite number, got nan"),
    "mean is beyond floats": (set_spec(mean=[10**400, 0, 0]), r"spec.mean\[0\] must be a finite number"),
    "std of zero": (set_spec(std=[0, 0, 0]), "std in 1e-6"),
    "stride of zero": (set_spec(stride=0), "stride must lie"),
    "limits are huge": (set_spec(max_tokens=10**12), "max_tokens must lie"),
    "mode nobody knows": (set_spec(mode="magic"), "spec.mode must be 'paper' or 'openmixup', got 'magic'"),
    "backbone is a number": (set_spec(backbone=5), "spec.backbone must be an object, got 5"),
    "backbone nobody knows": (set_spec(backbone={"name": "resnet_x"}), "knows no backbone 'resnet_x'"),
    "another backbone": (set_spec(backbone={"name": "resnet50"}), "tensor"),
    "a backbone of another kind": (set_spec(backbone={"name": "lambda_resnet26t"}), "tensor"),
    "layers without end": (set_spec(backbone={"layers": [10**9] * 4}), "layers must be"),
    "layers are text": (set_spec(backbone={"layers": "abcd"}), "spec.backbone.layers must be a list"),
    "a layer is text": (set_spec(backbone={"layers": [1, 1, 1, "1"]}), r"layers\[3\] must be a whole number"),
    "more than memory": (set_spec(backbone={"layers": [50] * 4, "channels": [8192] * 4}), "tensor"),
    "margin is infinite": (
        set_spec(rendering={"upsampling": "nearest", "lam_margin": float("inf")}),
        "lam_margin must be a finite number, got inf",
    ),
    "margin over a half": (set_spec(rendering={"upsampling": "nearest", "lam_margin": 3}), "lam_margin must lie"),
    "upsampling is a list": (set_spec(rendering={"upsampling": [], "lam_margin": 0.0}), "must be 'nearest' or"),
    "reduction of zero": (set_spec(block={"reduction": 0}), "reduction must lie"),
    "curve of nothing": (set_spec(block={"lam_curve": -0.3}), "lam_curve must be"),
    "gamma is text": (set_spec(block={"learnable_gamma": "yes"}), "learnable_gamma must be true or false, got 'yes'"),
    "missing tensor": (lambda _, weights: weights.pop("block.gamma"), "lacks tensor block.gamma"),
    "unknown tensor": (lambda _, weights: weights.update(extra=torch.ones(1)), "has an unknown tensor extra"),
    "wrong shape": (
        lambda _, weights: weights.update({"block.gamma": torch.zeros(2)}),
        r"tensor block.gamma is torch.float32 \[2\], its settings need torch.float32 \[\]",
    ),
    "wrong dtype": (
        lambda _, weights: weights.update({"block.gamma": torch.zeros((), dtype=torch.float8_e5m2)}),
        "block.gamma is torch.float8_e5m2",
    ),
    "diverged": (
        lambda _, weights: weights.update({"block.gamma": torch.tensor(float("nan"))}),
        "block.gamma is not finite; its training diverged",
    ),
    "another mixer's weights": (
        lambda _, weights: weights.update({"block.gamma": torch.tensor(0.5)}),
        "have checksum .*; copy it again",
    ),
}


@pytest.mark.parametrize(("damage", "complaint"), DAMAGES.values(), ids=DAMAGES.keys())
def test_every_damage_has_its_sentence(
    path: Path, damage: Callable[[dict[str, Any], dict[str, Tensor]], object], complaint: str
) -> None:
    """Whatever is wrong with an artefact is refused, naming the file, the value and what to do."""
    rewrite(path, damage)

    with pytest.raises(ArtefactError, match=complaint) as refusal:
        load_mixer(path)

    assert str(path) in str(refusal.value)
    assert len(str(refusal.value)) < 500 + len(str(path))


@pytest.mark.parametrize(
    "text",
    ["", "no JSON", "[]", "null", "7", '"format"', "{}", "[" * 100_000, '{"format": 1, "spec": ' + "[" * 100_000],
    ids=lambda text: text[:12],
)
def test_a_header_that_is_no_header_is_refused(path: Path, text: str) -> None:
    """Settings that are no JSON object, or nested without end, are refused."""
    save_file({"a": torch.ones(1)}, path, metadata={"samix": text})

    with pytest.raises(ArtefactError, match="settings cannot be read"):
        load_mixer(path)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.just(10**400),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=4,
)


@damaged
@given(data=st.data(), value=JSON)
def test_any_value_in_any_place_gives_a_mixer_or_a_sentence(path: Path, data: st.DataObject, value: object) -> None:
    """Whatever stands in place of a setting, load_mixer raises ArtefactError or returns a mixer that mixes."""

    def replace_one(header: dict[str, Any], weights: dict[str, Tensor]) -> None:
        place = header
        key = data.draw(st.sampled_from(sorted(place)))
        while isinstance(place[key], dict) and place[key] and data.draw(st.booleans(), label="deeper"):
            place = place[key]
            key = data.draw(st.sampled_from(sorted(place)))
        place[key] = value

    target = path.with_name("changed.safetensors")
    target.write_bytes(path.read_bytes())

    rewrite(target, replace_one)

    assert loads_or_is_refused(target)


def test_a_tensor_of_the_wrong_kind_is_found_before_the_checksum(path: Path) -> None:
    """A sealed artefact with half-precision weights is refused too: it is not what its settings describe."""

    def halve(header: dict[str, Any], weights: dict[str, Tensor]) -> None:
        weights["block.query.weight"] = weights["block.query.weight"].half()
        seal(header, weights)

    rewrite(path, halve)

    with pytest.raises(ArtefactError, match=r"block.query.weight is torch.float16"):
        load_mixer(path)


def test_fields_added_later_may_be_missing(path: Path) -> None:
    """Settings with a default may be left out, so that older files stay readable."""

    def written_before(header: dict[str, Any], weights: dict[str, Tensor]) -> None:
        for key in ("mode", "max_tokens", "min_side"):
            del header["spec"][key]
        seal(header, weights)

    rewrite(path, written_before)

    assert load_mixer(path).spec == tiny_spec()


def loads_or_is_refused(path: Path) -> bool:
    try:
        mixer = load_mixer(path)
    except ArtefactError:
        return True
    return bool(mixer.mix(torch.full((2, 3, 32, 32), 0.5), seed=0).images.isfinite().all())
