"""Two Triton servers behind a name that changes: /etc/hosts has it, in the gateway's own mount namespace."""

import socket
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.integration import conftest
from tests.integration.conftest import COSERVE, Serve, StartTriton
from tests.integration.gateway import until_ready
from tests.integration.load import Load, until
from tests.server.onnx_repository import limit_instances, write_repository

pytestmark = pytest.mark.cluster
SetAddresses = Callable[..., None]


@pytest.fixture
def set_addresses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SetAddresses:
    """Return a function that sets the addresses of `triton.test`, for programs that start afterwards."""
    hosts = tmp_path / "hosts"
    hosts.touch()
    inside = f"unshare --mount sh -c 'mount --bind {hosts} /etc/hosts && exec \"$@\"' sh"
    if subprocess.run(f"{inside} true", shell=True, capture_output=True, check=False).returncode:
        pytest.skip("needs the right to mount")
    command = tmp_path / "coserve"
    command.write_text(f'#!/bin/sh\nexec {inside} {COSERVE} "$@"\n')
    command.chmod(0o755)
    monkeypatch.setattr(conftest, "COSERVE", command)
    return lambda *addresses: hosts.write_text("".join(f"{address} triton.test\n" for address in addresses))


def test_tritons_that_come_and_go_behind_a_name(
    triton: StartTriton, serve: Serve, tmp_path: Path, set_addresses: SetAddresses
) -> None:
    repository = limit_instances(write_repository(tmp_path / "models"))
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    first = triton(repository, "--host", "127.0.0.1", "--grpc-port", port)
    set_addresses("127.0.0.1")
    gateway = serve(None, "--triton-url", f"triton.test:{port}")
    until_ready(gateway)
    with Load(gateway) as load:

        def answering() -> set[str]:
            """Return the addresses that the latest answers came from."""
            members = [member for answer in load.answers[-20:] for member in answer["members"]]
            return {member["device"].removeprefix("triton ").partition(":")[0] for member in members}

        second = triton(repository, "--host", "127.0.0.2", "--grpc-port", port)
        load.wait_for_more()
        assert answering() == {"127.0.0.1"}
        set_addresses("127.0.0.1", "127.0.0.2")
        until(lambda: len(answering()) == 2)
        set_addresses("127.0.0.2")
        until(lambda: answering() == {"127.0.0.2"})
        assert first.stop() == 0
        load.wait_for_more()
    assert load.failures == []
    second.stop()
