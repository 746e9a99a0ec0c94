"""Mixer artefacts: one .safetensors file, with the weights and a JSON that says how to rebuild the mixer.

No pickle is read. The checksum covers the weights alone, so that a card or a note may change without a new version.
"""

import hashlib
import json
import os
import tempfile
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from samix.errors import ArtefactError, ConfigError
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
    handle, temporary = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    os.close(handle)
    try:
        save_file(weights, temporary, metadata={_KEY: json.dumps(header, sort_keys=True)})
        Path(temporary).chmod(0o644)
        Path(temporary).replace(target)
    finally:
        Path(temporary).unlink(missing_ok=True)


def check_artefact_path(path: str | Path) -> Path:
    """Check early, before hours of training, that an artefact can be written there.

    Raises:
        ConfigError: if the path does not end in .safetensors, or its folder does not exist.
    """
    target = Path(path)
    if target.suffix != ".safetensors":
        raise ConfigError(f"an artefact's name ends in .safetensors, got {str(target)!r}")
    if not target.parent.is_dir():
        raise ConfigError(f"cannot write {target}: there is no folder {target.parent}; create it first")
    return target


def load_mixer(path: str | Path, device: str = "cpu") -> FrozenMixer:
    """Read a mixer from an artefact.

    Args:
        path: the .safetensors file.
        device: where it runs, for example "cpu" or "cuda:0".

    Raises:
        ArtefactError: if the file is missing, no artefact, of another format version, damaged, or its weights do not
            fit its settings.
    """
    source = Path(path)
    header, weights = _read(source)
    try:
        spec = MixerSpec.from_json(json.dumps(header["spec"]))
        net = MaskNet.build(spec)
    except (ArtefactError, ConfigError) as error:
        raise ArtefactError(f"{source}: {error}") from error
    _check_weights(source, net.state_dict(), weights, header["sha256"])
    net.load_state_dict(weights)
    return freeze(net, spec, name=header["name"], sha256=header["sha256"], device=device)


def read_provenance(path: str | Path) -> dict[str, str]:
    """Read what an artefact says of its making.

    Raises:
        ArtefactError: if the file is missing or no artefact.
    """
    return _read(Path(path))[0]["provenance"]


def weights_checksum(weights: dict[str, Tensor]) -> str:
    """Hash names, dtypes, shapes and bytes of all tensors, in order of their names."""
    digest = hashlib.sha256()
    for key in sorted(weights):
        tensor = weights[key].detach().cpu().contiguous()
        digest.update(f"{key}|{tensor.dtype}|{list(tensor.shape)}|".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _read(source: Path) -> tuple[dict, dict[str, Tensor]]:
    if not source.is_file():
        raise ArtefactError(
            f"there is no mixer at {source}; give the path of a .safetensors file made by samix pretrain"
        )
    try:
        with safe_open(source, framework="pt") as file:
            metadata = file.metadata() or {}
            weights = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a dict
    except (SafetensorError, OSError) as error:
        raise ArtefactError(f"{source} is not a whole safetensors file ({error}); copy or export it again") from error
    if _KEY not in metadata:
        raise ArtefactError(f"{source} holds tensors but no mixer settings; make artefacts with samix pretrain")
    return _parse_header(source, metadata[_KEY]), weights


def _parse_header(source: Path, text: str) -> dict:
    try:
        header = json.loads(text)
        version = header["format"]
    except (ValueError, KeyError, TypeError) as error:
        raise ArtefactError(f"{source}: its settings cannot be read ({error}); export it again") from error
    if version != FORMAT_VERSION:
        raise ArtefactError(
            f"{source} has artefact format {version}, this version reads {FORMAT_VERSION}; "
            "upgrade samix-service or export the mixer again"
        )
    missing = {"name", "sha256", "spec", "provenance"} - header.keys()
    if missing:
        raise ArtefactError(f"{source}: its settings lack {', '.join(sorted(missing))}; export it again")
    return header


def _check_weights(source: Path, expected: dict[str, Tensor], weights: dict[str, Tensor], sha256: str) -> None:
    for key in expected.keys() ^ weights.keys():
        side = "lacks" if key in expected else "has an unknown"
        raise ArtefactError(f"{source} {side} tensor {key}; its weights do not fit its settings, export it again")
    for key, tensor in expected.items():
        if tensor.shape != weights[key].shape:
            raise ArtefactError(
                f"{source}: tensor {key} is {list(weights[key].shape)}, its settings need {list(tensor.shape)}; "
                "export it again"
            )
    actual = weights_checksum(weights)
    if actual != sha256:
        raise ArtefactError(
            f"{source}: its weights have checksum {actual[:12]}, its header says {sha256[:12]}; copy it again"
        )
