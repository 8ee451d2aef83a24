"""Prompts -> token ids and tokens -> text, by the tokenizer and chat template of the checkpoint.

Prompts are cut, answered and scored as the library does it when it judges a checkpoint, so that the numbers agree; the
smoke test holds both to it.
"""

import json
from pathlib import Path

IDENTITY = "{% for message in messages %}{{ message['content'] }}{% endfor %}"


class Text:
    """A checkpoint's tokenizer, with what a decoder must know of it."""

    def __init__(self, checkpoint: Path, max_prompt_tokens: int) -> None:
        from transformers import AutoTokenizer

        self.tokenizer = AutoTokenizer.from_pretrained(checkpoint)
        self.limit = max_prompt_tokens
        stops = {*_eos(checkpoint), self.tokenizer.eos_token_id} - {None}
        pad = self.tokenizer.pad_token_id
        self.stops = frozenset(int(stop) for stop in stops if stop is not None)
        self.pad = int(min(self.stops) if pad is None else pad)
        self.vocabulary = int(max(self.tokenizer.get_vocab().values())) + 1
        if self.tokenizer.chat_template is None:
            begins_with_bos = self.tokenizer("a")["input_ids"][0] == self.tokenizer.bos_token_id
            self.tokenizer.chat_template = ("{{ bos_token }}" if begins_with_bos else "") + IDENTITY
        one, other = self._tokens(["0", "x"])
        self.head = _common(one, other)

    def encode(self, prompts: list[str]) -> list[list[int]]:
        """Return the token ids of each prompt as one user turn, at most `max_prompt_tokens` and never none."""
        return [self._cut(row) for row in self._tokens(prompts)]

    def decode(self, tokens: list[int]) -> str:
        """Return the text of an answer; a stop token at its end is no part of it."""
        kept = tokens[:-1] if tokens and tokens[-1] in self.stops else tokens
        return str(self.tokenizer.decode(kept, skip_special_tokens=True))

    def _tokens(self, prompts: list[str]) -> list[list[int]]:
        turns = [[{"role": "user", "content": prompt}] for prompt in prompts]
        texts = self.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        return self.tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]  # type: ignore[no-any-return]

    def _cut(self, row: list[int]) -> list[int]:
        """Take from the beginning of the text what is too long, and keep what the template puts around it."""
        if len(row) > self.limit:
            row = row[: self.head] + row[len(row) - (self.limit - self.head) :]
        if not row:
            bos, eos = self.tokenizer.bos_token_id, self.tokenizer.eos_token_id
            row = [next((token for token in (bos, eos) if token is not None), self.pad)]
        return row


def _eos(checkpoint: Path) -> list[int | None]:
    """Return the stop tokens of the generation config; a checkpoint without one has those of its config."""
    generation = checkpoint / "generation_config.json"
    file = generation if generation.is_file() else checkpoint / "config.json"
    own = json.loads(file.read_text("utf-8")).get("eos_token_id")
    return own if isinstance(own, list) else [own]


def _common(one: list[int], other: list[int]) -> int:
    pairs = zip(one, other, strict=False)
    return next((at for at, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))
