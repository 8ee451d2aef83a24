"""Serves a student: the only code inside its Bento, where model.json and checkpoint/ lie beside it.

    bentoml serve STUDENT:VERSION --host 127.0.0.1
    curl 127.0.0.1:3000/generate -H 'content-type: application/json' -d '{"prompts": ["..."]}'

It imports nothing of ours, and reads the prompt format from the checkpoint. Prompts are cut, answered and scored
as the library does it when it judges a checkpoint, so that the numbers agree; the smoke test holds both to it.
"""

import json
import os
from pathlib import Path
from typing import Annotated, Any

import bentoml
from pydantic import BaseModel, ConfigDict, Field

HERE = Path(__file__).resolve().parent
MODEL = json.loads((HERE / "model.json").read_text("utf-8"))
IDENTITY = "{% for message in messages %}{{ message['content'] }}{% endfor %}"


class Request(BaseModel):
    """Checked for each request alone, before it joins a batch: a bad one is answered with 400 and fails no other."""

    # Prompts are personal data: without hide_input_in_errors a bad one would be quoted in the server's log.
    model_config = ConfigDict(strict=True, extra="forbid", hide_input_in_errors=True)

    prompts: list[Annotated[str, Field(pattern=r"\S")]] = Field(min_length=1)


class Answer(BaseModel):
    """What the student says to one prompt."""

    response: str
    mean_logprob: float  # over the answer's tokens, stop token included [nats/token]
    model_version: str


@bentoml.service(name="student", workers=1)
class Student:
    """One worker with one model; requests that wait at the same time are answered in one batch."""

    def __init__(self) -> None:
        os.environ["HF_HUB_OFFLINE"] = "1"  # all that is needed lies in the checkpoint
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # threads that spin starve a busy machine
        import torch  # here and not above: the server's parent process and the build do without
        from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig
        from transformers.utils import logging

        logging.disable_progress_bar()
        device = "cuda" if torch.cuda.is_available() else "cpu"
        self.tokenizer = AutoTokenizer.from_pretrained(HERE / "checkpoint")
        self.model = AutoModelForCausalLM.from_pretrained(
            HERE / "checkpoint", dtype="auto" if device == "cuda" else torch.float32
        )
        self.model.to(device).eval()
        own = self.model.generation_config.eos_token_id
        stops = {*(own if isinstance(own, list) else [own]), self.tokenizer.eos_token_id} - {None}
        pad = self.tokenizer.pad_token_id
        self.stops, self.pad = sorted(stops), min(stops) if pad is None else pad
        self.vocabulary = max(self.tokenizer.get_vocab().values()) + 1
        if self.tokenizer.chat_template is None:
            begins_with_bos = self.tokenizer("a")["input_ids"][0] == self.tokenizer.bos_token_id
            self.tokenizer.chat_template = ("{{ bos_token }}" if begins_with_bos else "") + IDENTITY
        one, other = self._tokens(["0", "x"])
        self.head, self.tail = _common(one, other), _common(one[::-1], other[::-1])
        self.greedy = GenerationConfig(
            do_sample=False,
            max_new_tokens=MODEL["max_new_tokens"],
            eos_token_id=self.stops,
            pad_token_id=self.pad,
        )
        self.model.generation_config = GenerationConfig()  # generate() would fill gaps from the checkpoint's own

    @bentoml.api(  # type: ignore[untyped-decorator]
        batchable=True,
        batch_dim=0,
        max_batch_size=MODEL["max_batch_size"],
        max_latency_ms=MODEL["max_latency_ms"],
        input_spec=Request,
    )
    def generate(self, prompts: list[str]) -> list[Answer]:
        """Answer prompts greedily, each with the mean log-probability of its answer, in their order."""
        import torch

        rows = [self._cut(row) for row in self._tokens(prompts)]
        length = max(len(row) for row in rows)
        tokens = torch.tensor([[self.pad] * (length - len(row)) + row for row in rows])  # (B, T)
        mask = torch.tensor([[0] * (length - len(row)) + [1] * len(row) for row in rows])  # (B, T)
        steps: list[torch.Tensor] = []  # one (B,) a generated token

        def record(_: Any, scores: torch.Tensor) -> torch.Tensor:
            scores[:, self.vocabulary :] = float("-inf")  # padding of the output layer: no text has these ids
            steps.append(scores.float().log_softmax(-1).amax(-1))  # greedy takes the likeliest
            return scores

        with torch.inference_mode():
            output = self.model.generate(
                tokens.to(self.model.device),
                attention_mask=mask.to(self.model.device),
                generation_config=self.greedy,
                logits_processor=[record],
            )
        answers, logprobs = output[:, length:].tolist(), torch.stack(steps, 1).double()  # (B, S)
        return [self._answer(answer, row) for answer, row in zip(answers, logprobs, strict=True)]

    def _answer(self, tokens: list[int], logprobs: Any) -> Answer:
        """Return the answer up to its first stop token, which counts but is no part of the text."""
        end = next((at for at, token in enumerate(tokens) if token in self.stops), len(tokens))
        return Answer(
            response=self.tokenizer.decode(tokens[:end], skip_special_tokens=True),
            mean_logprob=float(logprobs[: end + 1].mean()),
            model_version=MODEL["model_version"],
        )

    def _tokens(self, prompts: list[str]) -> list[list[int]]:
        turns = [[{"role": "user", "content": prompt}] for prompt in prompts]
        texts = self.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        return self.tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]  # type: ignore[no-any-return]

    def _cut(self, row: list[int]) -> list[int]:
        """Take from the beginning of the text what is too long, and keep what the template puts around it."""
        limit = MODEL["max_prompt_tokens"]
        if len(row) > limit:
            row = row[: self.head] + row[len(row) - (limit - self.head) :]
        if not row:
            bos, eos = self.tokenizer.bos_token_id, self.tokenizer.eos_token_id
            row = [next((token for token in (bos, eos) if token is not None), self.pad)]
        return row


def _common(one: list[int], other: list[int]) -> int:
    pairs = zip(one, other, strict=False)
    return next((at for at, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))
