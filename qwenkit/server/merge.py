"""Several coroutines or streams as one: the first failure ends them all."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Coroutine, Sequence
from contextlib import aclosing
from typing import Any, TypeVar

T = TypeVar("T")


async def together(works: Sequence[Coroutine[Any, Any, T]]) -> list[T]:
    """The results in order. When one fails or this is cancelled, none goes on."""
    tasks = [asyncio.ensure_future(work) for work in works]
    try:
        return await asyncio.gather(*tasks)
    finally:
        await _stop(tasks)


async def merged(
    sources: Sequence[AsyncGenerator[T, None]],
) -> AsyncGenerator[tuple[int, T], None]:
    """(number of the source, item) as they come. Closing it closes all sources."""
    if len(sources) == 1:
        async with aclosing(sources[0]) as items:
            async for item in items:
                yield 0, item
        return
    box: asyncio.Queue[tuple[int, T] | None] = asyncio.Queue()

    async def pump(number: int) -> None:
        try:
            async with aclosing(sources[number]) as items:
                async for item in items:
                    box.put_nowait((number, item))
        finally:
            box.put_nowait(None)

    tasks = [asyncio.ensure_future(pump(number)) for number in range(len(sources))]
    try:
        running = len(tasks)
        while running:
            found = await box.get()
            if found is not None:
                yield found
                continue
            running -= 1
            failed = [t for t in tasks if t.done() and not t.cancelled() and t.exception()]
            if failed:
                failed[0].result()
        for task in tasks:
            await task
    finally:
        await _stop(tasks)


async def _stop(tasks: Sequence[asyncio.Future[Any]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
