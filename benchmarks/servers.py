"""What somebody would write without a Bento: FastAPI around transformers' generate, plain and with micro-batching.

python -m benchmarks.servers plain|micro CHECKPOINT PORT NEW_TOKENS
"""

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel
from transformers import AutoModelForCausalLM, AutoTokenizer

MOST = 32  # prompts in a micro-batch
PATIENCE = 0.005  # that the first of a micro-batch waits for others [s]


class Question(BaseModel):
    """What the Bento takes."""

    prompts: list[str]


class Model:
    """Greedy answers by generate(), padded on the left; one call at a time."""

    def __init__(self, checkpoint: Path, new_tokens: int) -> None:
        self.tokenizer = AutoTokenizer.from_pretrained(checkpoint, padding_side="left")
        self.model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval()
        self.new_tokens, self.thread = new_tokens, ThreadPoolExecutor(1)

    def answers(self, prompts: list[str]) -> list[str]:
        """Return the answers in the order of the prompts."""
        batch = self.tokenizer(prompts, return_tensors="pt", padding=True, return_token_type_ids=False)
        with torch.inference_mode():
            output = self.model.generate(**batch, do_sample=False, max_new_tokens=self.new_tokens)
        found: list[str] = self.tokenizer.batch_decode(
            output[:, batch["input_ids"].shape[1] :], skip_special_tokens=True
        )
        return found

    async def answered(self, prompts: list[str]) -> list[str]:
        """Return the answers without holding up the event loop."""
        return await asyncio.get_running_loop().run_in_executor(self.thread, self.answers, prompts)


def plain(model: Model) -> FastAPI:
    """Return a server that answers one request at a time."""
    app = FastAPI()

    @app.post("/generate")
    async def generate(question: Question) -> list[dict[str, Any]]:
        return [{"response": answer} for answer in await model.answered(question.prompts)]

    return app


def micro(model: Model) -> FastAPI:
    """Return a server that answers in one batch whatever came while the batch before was answered."""
    waiting: asyncio.Queue[tuple[str, asyncio.Future[str]]] = asyncio.Queue()

    async def batches() -> None:
        while True:
            batch = [await waiting.get()]
            await asyncio.sleep(PATIENCE)
            while len(batch) < MOST and not waiting.empty():
                batch.append(waiting.get_nowait())
            for (_, future), answer in zip(batch, await model.answered([prompt for prompt, _ in batch]), strict=True):
                future.set_result(answer)

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        task = asyncio.create_task(batches())
        yield
        task.cancel()

    app = FastAPI(lifespan=lifespan)

    @app.post("/generate")
    async def generate(question: Question) -> list[dict[str, Any]]:
        futures = [asyncio.get_running_loop().create_future() for _ in question.prompts]
        for pair in zip(question.prompts, futures, strict=True):
            waiting.put_nowait(pair)
        return [{"response": await future} for future in futures]

    return app


def main() -> None:
    """Serve on loopback."""
    kind, checkpoint, port, new_tokens = sys.argv[1:]
    model = Model(Path(checkpoint), int(new_tokens))
    app = {"plain": plain, "micro": micro}[kind](model)
    uvicorn.run(app, host="127.0.0.1", port=int(port), log_level="warning")


if __name__ == "__main__":
    main()
