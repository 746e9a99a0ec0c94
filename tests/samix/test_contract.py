"""`samix protos`: the contract, for those who generate a client."""

from pathlib import Path

import pytest

from samix.contract import main, protos_folder


def test_copies_every_proto_to_where_others_import_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """All files come whole, under the paths of their imports, and are named; a second run replaces them."""
    folder = tmp_path / "new" / "protos"

    statuses = [main(["--out", str(folder)]), main(["--out", str(folder)])]

    assert statuses == [0, 0]
    copied = {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*.proto")}
    assert copied == {path.relative_to(protos_folder()): path.read_bytes() for path in protos_folder().rglob("*.proto")}
    assert Path("samix/mixer/v1/mixer.proto") in copied
    assert str(folder / "samix/mixer/v1/mixer.proto") in capsys.readouterr().out.splitlines()


def test_says_where_it_cannot_write(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """A file in the way of the folder is one sentence that names it, and exit status 2."""
    (tmp_path / "taken").write_text("")

    status = main(["--out", str(tmp_path / "taken")])

    assert status == 2
    assert capsys.readouterr().err.startswith(f"error: {tmp_path / 'taken'}")
