"""Mixer artefacts: one .safetensors file, with the weights and a JSON that says how to rebuild the mixer.

No pickle is read. The checksum covers weights and settings, but not the provenance, so that a note may change without a
new version.
"""

import json
import os
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from samix.errors import ArtefactError, ConfigError
from samix.mixing.checksum import mixer_checksum
from samix.mixing.frozen import FrozenMixer, MaskNet, freeze
from samix.mixing.spec import MixerSpec

FORMAT_VERSION = 1
_KEY = "samix"


def save_artefact(path: str | Path, mixer: FrozenMixer, provenance: dict[str, str]) -> None:
    """Write a mixer; the file appears whole or not at all.

    Args:
        path: where to; ends in .safetensors.
        mixer: what to write.
        provenance: training data, recipe, commit and whatever else a reader should know.

    Raises:
        ConfigError: if the path does not end in .safetensors, or its folder does not exist.
    """
    target = check_artefact_path(path)
    header = {
        "format": FORMAT_VERSION,
        "name": mixer.name,
        "sha256": mixer.sha256,
        "spec": json.loads(mixer.spec.to_json()),
        "provenance": provenance,
    }
    weights = {key: value.contiguous().cpu() for key, value in mixer.net.state_dict().items()}
    temporary = target.with_name(f".{target.name}.{os.getpid()}.partial")
    try:
        save_file(weights, temporary, metadata={_KEY: json.dumps(header, sort_keys=True)})
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


def check_artefact_path(path: str | Path) -> Path:
    """Check early, before hours of training, that an artefact can be written there.

    Raises:
        ConfigError: if the path does not end in .safetensors, is a folder, or its folder cannot be written to.
    """
    target = Path(path)
    if target.suffix != ".safetensors":
        raise ConfigError(f"an artefact's name ends in .safetensors, got {str(target)!r}")
    if not target.parent.is_dir():
        raise ConfigError(f"cannot write {target}: there is no folder {target.parent}; create it first")
    if target.is_dir() or not os.access(target.parent, os.W_OK):
        raise ConfigError(f"cannot write {target}: it is a folder or in one without write permission; choose another")
    return target


def load_mixer(path: str | Path, device: str = "cpu") -> FrozenMixer:
    """Read a mixer from an artefact.

    Args:
        path: the .safetensors file.
        device: where it runs, for example "cpu" or "cuda:0".

    Raises:
        ArtefactError: if the file is missing, no artefact, of another format version, damaged, or its weights do not
            fit its settings.
        ConfigError: if torch has no such device here.
    """
    source = Path(path)
    header, weights = _read(source)
    settings = json.dumps(header["spec"], sort_keys=True)
    try:
        spec = MixerSpec.from_json(settings)
        with torch.device("meta"):  # shapes first: settings may ask for a network larger than memory
            expected = MaskNet.build(spec).state_dict()
    except (ArtefactError, ConfigError) as error:
        raise ArtefactError(f"{source}: {error}") from error
    _check_weights(source, expected, weights)
    _check_sum(source, mixer_checksum(settings, weights), header["sha256"])
    net = MaskNet.build(spec)
    net.load_state_dict(weights)
    return freeze(net, spec, name=header["name"], sha256=header["sha256"], device=device)


def read_provenance(path: str | Path) -> dict[str, str]:
    """Read what an artefact says of its making.

    Raises:
        ArtefactError: if the file is missing or no artefact.
    """
    return _read(Path(path))[0]["provenance"]


def _read(source: Path) -> tuple[dict, dict[str, Tensor]]:
    try:
        if not source.is_file():
            raise ArtefactError(
                f"there is no mixer at {source}; give the path of a .safetensors file made by samix pretrain"
            )
        with safe_open(source, framework="pt") as file:
            header = _parse_header(source, file.metadata() or {})
            weights = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a dict
    except (SafetensorError, OSError) as error:
        raise ArtefactError(f"{source} is not a whole safetensors file ({error}); copy or export it again") from error
    return header, weights


def _parse_header(source: Path, metadata: dict[str, str]) -> dict:
    if _KEY not in metadata:
        raise ArtefactError(f"{source} holds tensors but no mixer settings; make artefacts with samix pretrain")
    try:
        header = json.loads(metadata[_KEY])
        version = header["format"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ArtefactError(f"{source}: its settings cannot be read ({error}); export it again") from error
    if version != FORMAT_VERSION:
        raise ArtefactError(
            f"{source} has artefact format {str(version)[:20]}, this version reads {FORMAT_VERSION}; "
            "upgrade samix-service or export the mixer again"
        )
    missing = {"name", "sha256", "spec", "provenance"} - header.keys()
    if missing:
        raise ArtefactError(f"{source}: its settings lack {', '.join(sorted(missing))}; export it again")
    _check_kinds(source, header)
    return header


def _check_kinds(source: Path, header: dict) -> None:
    name, provenance = header["name"], header["provenance"]
    # Names end up in log lines, metric labels and pages.
    if not isinstance(name, str) or not 1 <= len(name) <= 128 or not name.isprintable():
        raise ArtefactError(f"{source}: name must be 1..128 printable characters, got {str(name)[:60]!r}; rename it")
    if not isinstance(header["sha256"], str):
        raise ArtefactError(f"{source}: sha256 must be text, got {str(header['sha256'])[:60]}; export it again")
    if not isinstance(provenance, dict) or not all(isinstance(value, str) for value in provenance.values()):
        raise ArtefactError(f"{source}: provenance must map text to text, got {str(provenance)[:60]}; export it again")


def _check_weights(source: Path, expected: dict[str, Tensor], weights: dict[str, Tensor]) -> None:
    for key in sorted(expected.keys() ^ weights.keys()):
        side = "lacks" if key in expected else "has an unknown"
        raise ArtefactError(f"{source} {side} tensor {key}; its weights do not fit its settings, export it again")
    for key, tensor in expected.items():
        found = weights[key]
        if (found.shape, found.dtype) != (tensor.shape, tensor.dtype):
            raise ArtefactError(
                f"{source}: tensor {key} is {found.dtype} {list(found.shape)}, its settings need {tensor.dtype} "
                f"{list(tensor.shape)}; export it again"
            )
        if not found.isfinite().all():
            raise ArtefactError(f"{source}: tensor {key} is not finite; its training diverged, train it again")


def _check_sum(source: Path, actual: str, stated: str) -> None:
    if actual != stated:
        raise ArtefactError(
            f"{source}: weights and settings have checksum {actual[:12]}, its header says {stated[:12]}; copy it again"
        )
