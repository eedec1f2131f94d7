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
from aqe.prompts import inert, token_ids
from serve.engine import Decoding, Piece, check_length
from serve.schemas import MAX_EXPANSIONS, MAX_QUERIES, MAX_TOKENS, Strict, Text
from serve.service import ExpandService

#: OpenAI's default of the older route; a chat answer may be longer.
COMPLETION_TOKENS, CHAT_TOKENS = 16, 256
#: The model's length cuts prompts off; this bounds the work of counting their tokens.
Prompt = Annotated[Text, Field(max_length=20_000)]


class StreamOptions(Strict):
    """How a stream ends."""

    include_usage: bool = False


class _Request(Strict):
    model: Text | None = None
    """The served model's id, or nothing."""
    temperature: float = Field(default=1, ge=0, le=2)
    """0 is greedy, as POST /v1/expand decodes."""
    top_p: float = Field(default=1, gt=0, le=1)
    top_k: int = Field(default=0, ge=0, le=1_000_000)
    """0 means no cut. Not among OpenAI's fields, but other servers have it."""
    n: int = Field(default=1, ge=1, le=MAX_EXPANSIONS)
    seed: int | None = Field(default=None, ge=0, lt=2**62)
    stop: Text | list[Text] | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None
    user: Text | None = None
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
    prompts: Sequence[str]
    decodings: Sequence[Decoding]
    prompt_tokens: int
    tokens: int = 0

    @property
    def usage(self) -> CompletionUsage:
        return CompletionUsage(
            prompt_tokens=self.prompt_tokens,
            completion_tokens=self.tokens,
            total_tokens=self.prompt_tokens + self.tokens,
        )

    async def whole(self) -> list[Piece]:
        """Each continuation as one piece."""

        async def one(prompt: str, decoding: Decoding) -> Piece:
            pieces = [piece async for piece in self.service.pieces(prompt, decoding, whole=True)]
            drawn = tuple(token for piece in pieces for token in piece.token_ids)
            self.tokens += len(drawn)
            return Piece("".join(piece.text for piece in pieces), drawn, pieces[-1].finish_reason)

        return await asyncio.gather(*map(one, self.prompts, self.decodings))

    async def pieces(self) -> AsyncGenerator[tuple[int, Piece]]:
        """Pieces of all continuations as they are made, each with its continuation's number."""
        queue: asyncio.Queue[tuple[int, Piece] | Exception] = asyncio.Queue()

        async def pump(index: int) -> None:
            try:
                stream = self.service.pieces(self.prompts[index], self.decodings[index], whole=False)
                async with aclosing(stream) as pieces:
                    async for piece in pieces:
                        queue.put_nowait((index, piece))
            except Exception as error:
                queue.put_nowait(error)

        tasks = [asyncio.create_task(pump(i)) for i in range(len(self.prompts))]
        try:
            running = len(tasks)
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


class Completions:
    """Both routes. A chat is the completion of the model's chat template."""

    def __init__(self, service: ExpandService) -> None:
        self._service = service

    def _work(self, request: _Request, prompts: Sequence[str], max_tokens: int) -> _Work:
        if request.model not in (None, "", self._service.model):
            raise UnknownModel(f"there is no model {request.model!r} here; {self._service.model!r} is served")
        encoded = [token_ids(self._service.recipe.tokenizer, prompt) for prompt in prompts]
        each = [(prompt, request.decoding(max_tokens, i)) for prompt in prompts for i in range(request.n)]
        for prompt, ids in zip(prompts, encoded, strict=True):
            # Before any is begun: a stream could not say so any more.
            check_length(prompt, ids, each[0][1], self._service.engine.max_model_len)
        return _Work(
            self._service, [prompt for prompt, _ in each], [decoding for _, decoding in each], sum(map(len, encoded))
        )

    def _chat(self, request: ChatRequest) -> _Work:
        tokenizer = self._service.recipe.tokenizer
        if getattr(tokenizer, "chat_template", None) is None:
            raise InputError("this model has no chat template: use POST /v1/completions, or /v1/expand")
        # What a user writes is text: only the template's own tokens tell who speaks.
        messages = [m.model_dump() | {"content": inert(m.content, tokenizer)} for m in request.messages]
        prompt = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        return self._work(request, [prompt], request.max_completion_tokens or request.max_tokens or CHAT_TOKENS)

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": f"{kind}-{uuid.uuid4().hex}", "created": int(time.time()), "model": self._service.model}

    async def complete(self, request: CompletionRequest) -> Completion:
        """Whole answers, n for each prompt."""
        work = self._work(request, request.prompts, request.max_tokens)
        choices = [
            CompletionChoice(index=i, text=piece.text, finish_reason=piece.finish_reason or "length")
            for i, piece in enumerate(await work.whole())
        ]
        return Completion(**self._head("cmpl"), object="text_completion", choices=choices, usage=work.usage)

    async def chat(self, request: ChatRequest) -> ChatCompletion:
        """Whole answers."""
        work = self._chat(request)
        choices = [
            Choice(
                index=i,
                message=ChatCompletionMessage(role="assistant", content=piece.text),
                finish_reason=piece.finish_reason or "length",
            )
            for i, piece in enumerate(await work.whole())
        ]
        return ChatCompletion(**self._head("chatcmpl"), object="chat.completion", choices=choices, usage=work.usage)

    def complete_stream(self, request: CompletionRequest) -> AsyncGenerator[Completion]:
        """Pieces of the answers as they are made. Raises what is wrong with the request at once, not in the stream."""
        work, head = self._work(request, request.prompts, request.max_tokens), self._head("cmpl")

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

    def chat_stream(self, request: ChatRequest) -> AsyncGenerator[ChatCompletionChunk]:
        """As `complete_stream`."""
        work, head = self._chat(request), self._head("chatcmpl")

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
