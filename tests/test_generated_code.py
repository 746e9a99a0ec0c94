"""Generated protobuf code is committed, and is what the .proto sources give."""

from pathlib import Path

from grpc_tools import protoc

ROOT = Path(__file__).parents[1]


def test_generated_code_is_up_to_date(tmp_path: Path) -> None:
    """Regenerating from protos/ gives the committed files byte for byte, and no other; else run `make protos`."""
    protos = sorted((ROOT / "protos").rglob("*.proto"))
    arguments = [f"--{kind}_out={tmp_path}" for kind in ("python", "pyi", "grpc_python")]

    status = protoc.main(["protoc", f"-I{ROOT / 'protos'}", *arguments, *map(str, protos)])

    assert status == 0
    assert _generated(tmp_path) == _generated(ROOT)


def _generated(folder: Path) -> dict[str, bytes]:
    files = (file for file in (folder / "samix").glob("*/*/*_pb2*") if file.is_file())
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in files}
