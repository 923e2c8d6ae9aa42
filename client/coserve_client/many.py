"""Classify many images in requests that run at the same time, in threads or in tasks."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeAlias

from coserve_client.batching import Outcome, check_limits, merge_outcomes, pair_results, read_batch, split
from coserve_client.connecting import MAX_CONNECTIONS
from coserve_client.errors import RejectedError
from coserve_client.images import Image, Source, iterate
from coserve_client.options import ClassifyOptions, write_options
from coserve_client.replies import Reply

Classify: TypeAlias = Callable[[list[Image]], Reply]
AsyncClassify: TypeAlias = Callable[[list[Image]], Awaitable[Reply]]


def plan_requests(
    images: Iterable[Source], batch_size: int, concurrency: int, options: ClassifyOptions
) -> tuple[Iterator[list[Source]], int]:
    """Check the arguments of `Client.classify_many`, and divide the images among requests.

    Returns:
        The images of each request, and how many requests to send at a time.

    Raises:
        InputError: an argument cannot be used.
    """
    check_limits(batch_size, concurrency)
    write_options(**options)
    # More would wait for a connection, which has a timeout.
    return split(iterate(images), batch_size), min(concurrency, MAX_CONNECTIONS)


def classify_in_threads(
    classify: Classify, batches: Iterator[list[Source]], concurrency: int
) -> Iterator[Outcome]:
    """Classify batches in threads; yield the outcomes of their images in order.

    Args:
        classify: classifies the images of one request.
        batches: the images of each request, consumed as threads become free.
        concurrency: number of threads.

    Raises:
        CoserveError: a failure not specific to one image, once the requests in progress have finished.
    """
    pending: deque[Future[list[Outcome]]] = deque()
    threads = ThreadPoolExecutor(concurrency, "coserve-client")
    try:
        while True:
            while len(pending) < concurrency and (batch := next(batches, None)):
                pending.append(threads.submit(_classify_batch, classify, batch))
            if not pending:
                return
            yield from pending.popleft().result()
    finally:
        threads.shutdown(cancel_futures=True)


async def classify_in_tasks(
    classify: AsyncClassify, batches: Iterator[list[Source]], concurrency: int
) -> AsyncIterator[Outcome]:
    """Classify batches in tasks: `classify_in_threads` with `await`. An iteration that ends cancels them."""
    pending: deque[asyncio.Task[list[Outcome]]] = deque()
    try:
        while True:
            # Finding the next images may take as long as reading them.
            while len(pending) < concurrency and (batch := await asyncio.to_thread(next, batches, None)):
                pending.append(asyncio.create_task(_aclassify_batch(classify, batch)))
            if not pending:
                return
            for outcome in await pending[0]:
                yield outcome
            pending.popleft()
    finally:
        for task in pending:
            task.cancel()
        await asyncio.gather(*pending, return_exceptions=True)


def _classify_batch(classify: Classify, batch: list[Source]) -> list[Outcome]:
    images = read_batch(batch)
    readable = [image for image in images if isinstance(image, Image)]
    return merge_outcomes(batch, images, _classify_images(classify, readable))


async def _aclassify_batch(classify: AsyncClassify, batch: list[Source]) -> list[Outcome]:
    images = await asyncio.to_thread(read_batch, batch)
    readable = [image for image in images if isinstance(image, Image)]
    return merge_outcomes(batch, images, await _aclassify_images(classify, readable))


def _classify_images(classify: Classify, images: list[Image]) -> list[Outcome]:
    if not images:
        return []
    try:
        reply = classify(images)
    except RejectedError as error:
        if len(images) == 1:
            # The traceback would keep the image in memory.
            return [Outcome(images[0], error=error.with_traceback(None))]
    else:
        return pair_results(images, reply)
    # The server rejects a request as a whole, so each image is sent again by itself.
    return [outcome for image in images for outcome in _classify_images(classify, [image])]


async def _aclassify_images(classify: AsyncClassify, images: list[Image]) -> list[Outcome]:
    if not images:
        return []
    try:
        reply = await classify(images)
    except RejectedError as error:
        if len(images) == 1:
            # The traceback would keep the image in memory.
            return [Outcome(images[0], error=error.with_traceback(None))]
    else:
        return pair_results(images, reply)
    # The server rejects a request as a whole, so each image is sent again by itself.
    return [outcome for image in images for outcome in await _aclassify_images(classify, [image])]
