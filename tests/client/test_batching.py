"""Classify many images in many requests."""

import asyncio
import gc
import io
import os
import threading
import weakref
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from coserve_client import AsyncClient, Client, Image, InputError, RejectedError, UnreachableError
from coserve_client.images import images_in

Make = Callable[..., dict[str, Any]]


def filenames(request: httpx.Request) -> list[str]:
    return [
        line.split(b'filename="')[1].split(b'"')[0].decode()
        for line in request.read().split(b"\r\n")
        if b'filename="' in line
    ]


@pytest.fixture(params=["sync", "async"])
def many(request: pytest.FixtureRequest) -> Callable[..., list[Any]]:
    """Run `classify_many`, or another method, of a new client to its end."""

    def sync(server: Any, *args: Any, method: str = "classify_many", **kwargs: Any) -> list[Any]:
        with Client(transport=httpx.MockTransport(server)) as client:
            return list(getattr(client, method)(*args, **kwargs))

    async def awaited(server: Any, *args: Any, method: str = "classify_many", **kwargs: Any) -> list[Any]:
        async with AsyncClient(transport=httpx.MockTransport(server)) as client:
            return [outcome async for outcome in getattr(client, method)(*args, **kwargs)]

    return sync if request.param == "sync" else lambda *a, **k: asyncio.run(awaited(*a, **k))


def images(count: int) -> list[Image]:
    return [Image(b"x", f"{index}.png") for index in range(count)]


def test_outcomes_come_in_order_with_their_replies(many: Any, reply: Make) -> None:
    def server(request: httpx.Request) -> httpx.Response:
        assert request.url.params["top_k"] == "2"
        return httpx.Response(200, json=reply(*filenames(request)))

    outcomes = many(server, images(23), batch_size=4, concurrency=3, top_k=2)
    assert [outcome.result.filename for outcome in outcomes] == [f"{index}.png" for index in range(23)]
    assert [outcome.source.filename for outcome in outcomes] == [f"{index}.png" for index in range(23)]
    assert len({id(outcome.reply) for outcome in outcomes}) == 6


def test_a_bad_image_does_not_affect_the_others(many: Any, reply: Make, tmp_path: Path) -> None:
    def server(request: httpx.Request) -> httpx.Response:
        names = filenames(request)
        return httpx.Response(413) if "bad.png" in names else httpx.Response(200, json=reply(*names))

    sources = [*images(5), Image(b"", "bad.png"), tmp_path / "none.png", *images(2)]
    outcomes = many(server, sources, batch_size=4, concurrency=2)
    assert [type(outcome.error) for outcome in outcomes] == [
        *[type(None)] * 5,
        RejectedError,
        InputError,
        *[type(None)] * 2,
    ]
    assert outcomes[5].result is None


def test_files_that_can_be_read_only_once_survive_a_rejected_neighbour(
    many: Any, reply: Make, tmp_path: Path
) -> None:
    def server(request: httpx.Request) -> httpx.Response:
        bodies = [part.split(b"\r\n\r\n", 1)[1] for part in request.read().split(b"\r\n--")[:-1]]
        good = all(body.startswith(b"good") for body in bodies)
        return httpx.Response(200, json=reply(*filenames(request))) if good else httpx.Response(413)

    end, start = os.pipe()
    os.write(start, b"good")
    os.close(start)
    opened = [io.BytesIO(b"good"), io.BytesIO(b"junk"), io.BytesIO(b"good")]
    outcomes = many(server, [*opened, f"/dev/fd/{end}", tmp_path / "none.png"])
    os.close(end)
    assert [type(outcome.error) for outcome in outcomes] == [
        type(None),
        RejectedError,
        *[type(None)] * 2,
        InputError,
    ]
    assert [outcome.source for outcome in outcomes[:3]] == opened


def test_readable_images_share_a_request_despite_an_unreadable_one(many: Any, reply: Make) -> None:
    requests: list[list[str]] = []

    def server(request: httpx.Request) -> httpx.Response:
        requests.append(filenames(request))
        return httpx.Response(200, json=reply(*requests[-1]))

    text = io.StringIO("text")
    first, second = images(2)
    outcomes = many(server, [first, text, second])
    assert [outcome.error is None for outcome in outcomes] == [True, False, True]
    assert requests == [["0.png", "1.png"]]


def test_any_other_failure_ends_the_iteration(many: Any) -> None:
    def server(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("refused")

    with pytest.raises(UnreachableError):
        many(server, images(100), batch_size=1, concurrency=4)


def test_consumes_images_as_needed_and_stops_with_the_caller(reply: Make) -> None:
    taken = 0
    sent = 0

    def sources() -> Iterator[Image]:
        nonlocal taken
        for image in images(1000):
            taken += 1
            yield image

    def server(request: httpx.Request) -> httpx.Response:
        nonlocal sent
        sent += 1
        return httpx.Response(200, json=reply(*filenames(request)))

    threads = threading.active_count()
    with Client(transport=httpx.MockTransport(server)) as client:
        outcomes = client.classify_many(sources(), batch_size=2, concurrency=3)
        next(outcomes)
        outcomes.close()  # type: ignore[attr-defined]  # it is a generator
    assert taken <= 2 * 3 + 1
    assert sent <= 3
    assert threading.active_count() == threads


def test_images_are_sent_while_the_iterable_waits_for_more(many: Any, reply: Make) -> None:
    sent = threading.Event()

    def sources() -> Iterator[Image]:
        yield from images(2)
        assert sent.wait(60)
        yield from images(1)

    def server(request: httpx.Request) -> httpx.Response:
        sent.set()
        return httpx.Response(200, json=reply(*filenames(request)))

    assert len(many(server, sources(), batch_size=2)) == 3


def test_no_more_requests_than_allowed_run_at_once(reply: Make) -> None:
    async def ask(count: int, concurrency: int, allowed: int) -> None:
        running = 0
        most = 0
        all_run = asyncio.Event()

        async def server(request: httpx.Request) -> httpx.Response:
            nonlocal running, most
            running += 1
            most = max(most, running)
            if running == allowed:
                all_run.set()
            await asyncio.wait_for(all_run.wait(), 60)
            await asyncio.sleep(0.01)
            running -= 1
            return httpx.Response(200, json=reply(*filenames(request)))

        async with AsyncClient(transport=httpx.MockTransport(server)) as client:
            outcomes = client.classify_many(images(count), batch_size=1, concurrency=concurrency)
            assert len([outcome async for outcome in outcomes]) == count
        assert len(asyncio.all_tasks()) == 1
        assert most == allowed

    asyncio.run(ask(40, 5, 5))
    # More than the connections there are.
    asyncio.run(ask(300, 1000, 100))


def test_a_folder_is_read_in_order_of_its_paths(many: Any, reply: Make, tmp_path: Path) -> None:
    for name in ("b.png", "a/z.jpg", "a/b/c.GIF", "a.png", "c/notes.txt", "d.JPEG", "a-b/x.avif"):
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"x")
    (tmp_path / "link.png").symlink_to("gone")
    found = list(images_in(tmp_path))
    assert found == sorted(path for path in tmp_path.rglob("*.*") if path.suffix != ".txt"), (
        "broken links too"
    )
    (tmp_path / "link.png").unlink()
    found.remove(tmp_path / "link.png")

    def server(request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, json=reply(*filenames(request)))

    outcomes = many(server, tmp_path, method="classify_folder", batch_size=4, concurrency=2)
    assert [outcome.source for outcome in outcomes] == found


def test_images_leave_memory_with_the_response(many: Any, reply: Make) -> None:
    requests: list[weakref.ref[httpx.Request]] = []

    def server(request: httpx.Request) -> httpx.Response:
        requests.append(weakref.ref(request))
        names = filenames(request)
        return httpx.Response(413) if "1.png" in names else httpx.Response(200, json=reply(*names))

    gc.disable()
    try:
        outcomes = many(server, images(6), batch_size=2)
        assert len(outcomes) == 6
        assert [request() for request in requests] == [None] * 5
    finally:
        gc.enable()


@pytest.mark.parametrize("kind", [Client, AsyncClient])
def test_wrong_arguments_are_reported_by_the_call_itself(kind: Any, tmp_path: Path) -> None:
    client = kind()
    for name in ("batch_size", "concurrency"):
        for value in ("1", 1.5, float("nan"), None):
            with pytest.raises(InputError, match=f"{name} must be a whole number, not {value!r}"):
                client.classify_many(images(1), **{name: value})
        with pytest.raises(InputError, match=f"{name} must be at least 1, not 0"):
            client.classify_many(images(1), **{name: 0})
    with pytest.raises(InputError, match="the name of a model must not be empty"):
        client.classify_many(images(1), model="")
    with pytest.raises(TypeError, match="topk"):
        client.classify_many(images(1), topk=3)
    with pytest.raises(InputError, match="nowhere: No such file"):
        client.classify_folder(tmp_path / "nowhere")
    with pytest.raises(InputError, match="null"):
        client.classify_folder("a\0b")


@pytest.mark.parametrize("kind", [Client, AsyncClient])
@pytest.mark.parametrize(
    "image",
    ["photo.jpg", "", b"x", bytearray(b"x"), Path("photo.jpg"), Image(b"x", "a.png"), io.BytesIO(b"x\ny")],
)
def test_one_image_is_not_taken_for_many(kind: Any, image: Any) -> None:
    with pytest.raises(
        InputError, match=r"not one of type [\w.]+: pass \[image\], or use classify; for a folder"
    ):
        kind().classify_many(image)


async def asynchronous() -> AsyncIterator[bytes]:
    yield b"x"


@pytest.mark.parametrize("kind", [Client, AsyncClient])
@pytest.mark.parametrize("wrong", [None, 5, asynchronous(), object()])
def test_many_images_come_from_an_iterable(kind: Any, wrong: Any) -> None:
    with pytest.raises(InputError, match=f"iterable of images, not {type(wrong).__name__}$"):
        kind().classify_many(wrong)


def test_works_if_httpx_stops_keeping_the_stream(many: Any, reply: Make, monkeypatch: Any) -> None:
    def server(request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, json=reply(*filenames(request)))

    def send(self: httpx.Client, request: httpx.Request) -> httpx.Response:
        response = server(request)
        del response.stream
        return response

    async def send_async(self: httpx.AsyncClient, request: httpx.Request) -> httpx.Response:
        return send(httpx.Client(), request)

    monkeypatch.setattr(httpx.Client, "send", send)
    monkeypatch.setattr(httpx.AsyncClient, "send", send_async)
    assert len(many(server, images(2))) == 2
