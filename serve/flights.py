"""What is asked for twice while it is being made is made once: later ones get the pieces of the first."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Hashable
from contextlib import aclosing
from typing import Generic, TypeVar

Made = TypeVar("Made")


class _Flight(Generic[Made]):
    """One stream in a task of its own, and all that it has given so far."""

    def __init__(self, source: AsyncGenerator[Made]) -> None:
        self.readers = 0
        self.ended = False
        self._pieces: list[Made] = []
        self._error: Exception | None = None
        self._news = asyncio.Event()
        self.task = asyncio.create_task(self._fly(source))

    async def _fly(self, source: AsyncGenerator[Made]) -> None:
        try:
            async with aclosing(source):
                async for piece in source:
                    self._pieces.append(piece)
                    self._tell()
        except Exception as error:
            self._error = error
        finally:
            self.ended = True
            self._tell()

    def _tell(self) -> None:
        self._news.set()
        self._news = asyncio.Event()

    async def read(self) -> AsyncGenerator[Made]:
        """All pieces from the first one on."""
        read = 0
        while True:
            news = self._news
            for piece in self._pieces[read:]:
                read += 1
                yield piece
            if self.ended and read == len(self._pieces):
                break
            await news.wait()
        if self._error:
            raise self._error


class Flights(Generic[Made]):
    """Streams that are being made, by what was asked for. One that nobody reads any more ends."""

    def __init__(self) -> None:
        self._flying: dict[Hashable, _Flight[Made]] = {}

    async def join(self, key: Hashable, make: Callable[[], AsyncGenerator[Made]]) -> AsyncGenerator[Made]:
        """The stream for `key`: the one that is being made, else a new one."""
        flight = self._flying.get(key)
        if flight is None:
            flight = self._flying[key] = _Flight(make())
        flight.readers += 1
        try:
            async with aclosing(flight.read()) as pieces:
                async for piece in pieces:
                    yield piece
        finally:
            flight.readers -= 1
            if (flight.ended or not flight.readers) and self._flying.get(key) is flight:
                del self._flying[key]
            if not flight.readers and not flight.ended:
                flight.task.cancel()
                await asyncio.gather(flight.task, return_exceptions=True)
