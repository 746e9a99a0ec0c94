"""Runs and artefacts name what they were made with."""

import pytest

from trainer.provenance import software


def test_an_image_names_the_commit_it_was_built_from(monkeypatch: pytest.MonkeyPatch):
    """Where there is no git, the commit is that of the image."""
    monkeypatch.setenv("SAMIX_COMMIT", "0123456789ab")

    assert software()["commit"] == "0123456789ab"
