"""Whether mixer files can be loaded."""

from pathlib import Path

from samix.errors import InputError
from services.doctor.findings import Finding, failure, failure_of, ok


def check_mixers(path: Path) -> list[Finding]:
    """Load a mixer, or all of a folder, on the CPU.

    Args:
        path: a .safetensors file, or a folder of them, as for `samix serve --mixers`.
    """
    if not path.is_dir():
        return [_check_file(path)]
    files = sorted(path.glob("*.safetensors"))
    if not files:
        return [failure(f"mixers {path}", "a folder without a .safetensors file", "give the folder that holds mixers")]
    return [_check_file(file) for file in files]


def _check_file(path: Path) -> Finding:
    from samix.mixing.artefact import load_mixer  # takes torch along

    check = f"mixer {path}"
    try:
        mixer = load_mixer(path)
    except (InputError, OSError) as error:
        return failure_of(check, error)
    return ok(check, f"{mixer.name}@{mixer.version}: whole, checksum right, network built")
