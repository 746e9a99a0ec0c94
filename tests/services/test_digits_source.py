"""The digits are scikit-learn's, which an installation may lack."""

import pytest

from samix.errors import InputError
from services.shards import sources


def test_without_scikit_learn_the_extra_is_named(monkeypatch: pytest.MonkeyPatch):
    """Whoever asks for digits without the package that holds them learns what to install."""
    monkeypatch.setattr(sources, "find_spec", lambda _: None)

    with pytest.raises(InputError, match=r"pip install 'samix-service\[digits\]'"):
        sources.digits()
