"""OpenAI's completions and chat completions on the same engine, for clients that exist already.

What a client asks for is done or refused, never passed over: keys that would change the answer and are not known here
get a 422. Answers are the `openai` package's own types.
"""

import asyncio
import time
import uuid
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from openai.types import Completion, CompletionChoice, CompletionUsage
from openai.types.chat import ChatCompletion, ChatCompletionChunk, ChatCompletionMessage
from openai.types.chat.chat_completion import Choice
from openai.types.chat.chat_completion_chunk import Choice as ChunkChoice
from openai.types.chat.chat_completion_chunk import ChoiceDelta
from pydantic import Field

from aqe.errors import InputError
from aqe.prompts import inert
from serve.call import Call
from serve.engine import Decoding, Job, Piece
from serve.schemas import MAX_EXPANSIONS, MAX_NAME_CHARS, MAX_QUERIES, MAX_TOKENS, Strict, Text
from serve.service import ExpandService
from serve.together import together

#: OpenAI's default of the older route; a chat answer may be longer.
COMPLETION_TOKENS, CHAT_TOKENS = 16, 256
#: The model's length cuts prompts off; this bounds the work of counting their tokens.
Prompt = Annotated[Text, Field(max_length=20_000)]
#: Every token is held against every stop text.
MAX_STOPS, MAX_STOP_CHARS = 16, 100
Stop = Annotated[Text, Field(max_length=MAX_STOP_CHARS)]


class StreamOptions(Strict):
    """How a stream ends."""

    include_usage: bool = False


class _Request(Strict):
    model: Annotated[Text, Field(max_length=MAX_NAME_CHARS)] | None = None
    """The served model's id, or nothing."""
    temperature: float = Field(default=1, ge=0, le=2)
    """0 is greedy, as POST /v1/expand decodes."""
    top_p: float = Field(default=1, gt=0, le=1)
    top_k: int = Field(default=0, ge=0, le=1_000_000)
    """0 means no cut. Not among OpenAI's fields, but other servers have it."""
    n: int = Field(default=1, ge=1, le=MAX_EXPANSIONS)
    seed: int | None = Field(default=None, ge=0, lt=2**62)
    stop: Stop | Annotated[list[Stop], Field(max_length=MAX_STOPS)] | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None
    user: Annotated[Text, Field(max_length=MAX_NAME_CHARS)] | None = None
    """Not used."""
    frequency_penalty: float = Field(default=0, ge=0, le=0)
    """Not supported: 0 only, which clients send of themselves."""
    presence_penalty: float = Field(default=0, ge=0, le=0)
    """As frequency_penalty."""

    def decoding(self, max_tokens: int, number: int) -> Decoding:
        stop = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())
        seed = None if self.seed is None else self.seed + number
        return Decoding(max_tokens, self.temperature, self.top_k, self.top_p, tuple(s for s in stop if s), seed)


class CompletionRequest(_Request):
    """POST /v1/completions."""

    prompt: Prompt | Annotated[list[Prompt], Field(min_length=1, max_length=MAX_QUERIES)]
    max_tokens: int = Field(default=COMPLETION_TOKENS, ge=1, le=MAX_TOKENS)

    @property
    def prompts(self) -> list[str]:
        return [self.prompt] if isinstance(self.prompt, str) else self.prompt


class Message(Strict):
    """One turn of a conversation."""

    role: Literal["system", "user", "assistant"]
    content: Prompt


class ChatRequest(_Request):
    """POST /v1/chat/completions."""

    messages: list[Message] = Field(min_length=1, max_length=MAX_QUERIES)
    max_tokens: int | None = Field(default=None, ge=1, le=MAX_TOKENS)
    max_completion_tokens: int | None = Field(default=None, ge=1, le=MAX_TOKENS)


class UnknownModel(InputError):
    """A request names a model that is not served here."""


@dataclass
class _Work:
    """One request's continuations: n for each prompt, in that order."""

    service: ExpandService
    jobs: Sequence[Job]
    prompt_tokens: int
    tokens: int = 0

    @property
    def usage(self) -> CompletionUsage:
        return CompletionUsage(
            prompt_tokens=self.prompt_tokens,
            completion_tokens=self.tokens,
            total_tokens=self.prompt_tokens + self.tokens,
        )

    @property
    def _distinct(self) -> list[tuple[Job, list[int]]]:
        """What is to be made, and the numbers of the continuations that it is for: what repeats is made once."""
        numbers: dict[Any, list[int]] = {}
        for number, job in enumerate(self.jobs):
            numbers.setdefault(job if job.decoding.repeats else number, []).append(number)
        return [(self.jobs[several[0]], several) for several in numbers.values()]

    async def whole(self) -> list[Piece]:
        """Each continuation as one piece."""

        async def one(part: tuple[Job, list[int]]) -> dict[int, Piece]:
            async with aclosing(self.service.generator.pieces(part[0])) as stream:
                pieces = [piece async for piece in stream]
            drawn = tuple(token for piece in pieces for token in piece.token_ids)
            made = Piece("".join(piece.text for piece in pieces), drawn, pieces[-1].finish_reason)
            return dict.fromkeys(part[1], made)

        parts = await together(one, self._distinct, self.service.engine.places)
        made = {number: piece for part in parts for number, piece in part.items()}
        self.tokens = sum(len(piece.token_ids) for piece in made.values())
        return [made[number] for number in range(len(self.jobs))]

    async def pieces(self) -> AsyncGenerator[tuple[int, Piece]]:
        """Pieces of all continuations as they are made, each with its continuation's number."""
        queue: asyncio.Queue[tuple[int, Piece] | Exception] = asyncio.Queue()
        left = iter(self._distinct)

        async def pump() -> None:
            try:
                for job, numbers in left:
                    async with aclosing(self.service.generator.pieces(job)) as pieces:
                        async for piece in pieces:
                            for number in numbers:
                                queue.put_nowait((number, piece))
            except Exception as error:
                queue.put_nowait(error)

        # No TaskGroup: it must not be left open where a generator waits for its reader.
        tasks = [asyncio.create_task(pump()) for _ in range(min(len(self.jobs), self.service.engine.places))]
        try:
            running = len(self.jobs)
            while running:
                new = await queue.get()
                if isinstance(new, Exception):
                    raise new
                self.tokens += len(new[1].token_ids)
                running -= new[1].finish_reason is not None
                yield new
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


class Completions:
    """Both routes. A chat is the completion of the model's chat template."""

    def __init__(self, service: ExpandService) -> None:
        self._service = service

    async def _work(self, request: _Request, prompts: Sequence[str], max_tokens: int, call: Call) -> _Work:
        """What a request takes. Nothing has begun; raises what is wrong with any of it."""
        if request.model not in (None, "", self._service.model):
            raise UnknownModel(f"there is no model {request.model!r} here; {self._service.model!r} is served")
        decodings = [request.decoding(max_tokens, i) for i in range(request.n)]
        jobs: list[Job] = []
        prompt_tokens = 0
        for place, prompt in enumerate(prompts):
            try:
                new = self._service.generator.jobs(call.caller, prompt, decodings, whole=not request.stream)
            except InputError as error:
                raise InputError(f"prompt.{place}: {error}" if len(prompts) > 1 else str(error)) from None
            jobs += new
            prompt_tokens += len(new[0].ids)
            # Tokens of long prompts take a while to count.
            await asyncio.sleep(0)
        await self._service.generator.admit(call.caller, jobs)
        return _Work(self._service, jobs, prompt_tokens)

    async def _chat(self, request: ChatRequest, call: Call) -> _Work:
        tokenizer = self._service.recipe.tokenizer
        if getattr(tokenizer, "chat_template", None) is None:
            raise InputError("this model has no chat template: use POST /v1/completions, or /v1/expand")
        # What a user writes is text: only the template's own tokens tell who speaks.
        messages = [m.model_dump() | {"content": inert(m.content, tokenizer)} for m in request.messages]
        prompt = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        max_tokens = request.max_completion_tokens or request.max_tokens or CHAT_TOKENS
        return await self._work(request, [prompt], max_tokens, call)

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": f"{kind}-{uuid.uuid4().hex}", "created": int(time.time()), "model": self._service.model}

    async def complete(self, request: CompletionRequest, call: Call) -> Completion:
        """Whole answers, n for each prompt."""
        work = await self._work(request, request.prompts, request.max_tokens, call)
        choices = [
            CompletionChoice(index=i, text=piece.text, finish_reason=piece.finish_reason or "length")
            for i, piece in enumerate(await work.whole())
        ]
        return Completion(**self._head("cmpl"), object="text_completion", choices=choices, usage=work.usage)

    async def chat(self, request: ChatRequest, call: Call) -> ChatCompletion:
        """Whole answers."""
        work = await self._chat(request, call)
        choices = [
            Choice(
                index=i,
                message=ChatCompletionMessage(role="assistant", content=piece.text),
                finish_reason=piece.finish_reason or "length",
            )
            for i, piece in enumerate(await work.whole())
        ]
        return ChatCompletion(**self._head("chatcmpl"), object="chat.completion", choices=choices, usage=work.usage)

    async def complete_stream(self, request: CompletionRequest, call: Call) -> AsyncGenerator[Completion]:
        """Pieces of the answers as they are made. Raises what is wrong with the request at once, not in the stream."""
        work, head = await self._work(request, request.prompts, request.max_tokens, call), self._head("cmpl")

        def chunk(choices: list[CompletionChoice], usage: CompletionUsage | None = None) -> Completion:
            return Completion.model_construct(**head, object="text_completion", choices=choices, usage=usage)

        async def chunks() -> AsyncGenerator[Completion]:
            async with aclosing(work.pieces()) as pieces:
                async for index, piece in pieces:
                    # OpenAI's own stream has null until the last piece, which its type does not allow.
                    reason: Any = piece.finish_reason
                    yield chunk([CompletionChoice.model_construct(index=index, text=piece.text, finish_reason=reason)])
            if request.stream_options and request.stream_options.include_usage:
                yield chunk([], work.usage)

        return chunks()

    async def chat_stream(self, request: ChatRequest, call: Call) -> AsyncGenerator[ChatCompletionChunk]:
        """As `complete_stream`."""
        work, head = await self._chat(request, call), self._head("chatcmpl")

        def chunk(choices: list[ChunkChoice], usage: CompletionUsage | None = None) -> ChatCompletionChunk:
            return ChatCompletionChunk(**head, object="chat.completion.chunk", choices=choices, usage=usage)

        async def chunks() -> AsyncGenerator[ChatCompletionChunk]:
            for index in range(request.n):
                yield chunk([ChunkChoice(index=index, delta=ChoiceDelta(role="assistant", content=""))])
            async with aclosing(work.pieces()) as pieces:
                async for index, piece in pieces:
                    delta = ChoiceDelta(content=piece.text)
                    yield chunk([ChunkChoice(index=index, delta=delta, finish_reason=piece.finish_reason)])
            if request.stream_options and request.stream_options.include_usage:
                yield chunk([], work.usage)

        return chunks()
