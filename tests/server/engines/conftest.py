"""Fixtures of the engines' tests."""

import pytest

from tests.server.engines.fake_cuda import FakeDriver, stand_in


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> FakeDriver:
    """The driver of a machine with two GPUs."""
    return stand_in(monkeypatch)
