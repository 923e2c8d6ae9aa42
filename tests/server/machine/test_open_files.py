import resource

import pytest

from coserve_server.machine.open_files import OTHERS, describe_lack, raise_limit


def test_the_limit_is_raised_as_far_as_connections_need_and_the_system_allows(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    limits = (100, 1000)

    def change(_: int, wanted: tuple[int, int]) -> None:
        nonlocal limits
        limits = wanted

    monkeypatch.setattr(resource, "getrlimit", lambda _: limits)
    monkeypatch.setattr(resource, "setrlimit", change)
    assert "need about 328 open files, but the limit is 100" in str(describe_lack(200))
    raise_limit(200)
    assert limits == (200 + OTHERS, 1000)
    assert describe_lack(200) is None
    raise_limit(10)
    assert limits == (200 + OTHERS, 1000), "it is never lowered"
    raise_limit(5000)
    assert limits == (1000, 1000)
    assert "the limit is 1000 (ulimit -n)" in str(describe_lack(5000))
