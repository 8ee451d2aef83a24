"""A stream's events, whenever the thread that answers ends a row."""

import asyncio
import json
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

from deployments.bento.serving.app import Desk, _Work
from deployments.bento.serving.batches import Row
from deployments.bento.serving.text import Text


class EndsMeanwhile(Text):
    """Text of a checkpoint, while the first of which is decoded the row's last tokens come."""

    row: Row
    rest: list[int]

    def decode(self, tokens: list[int]) -> str:
        if not self.row.finished:
            self.row.answer.extend(self.rest)
            self.row.logprobs.extend([-0.5] * len(self.rest))
            self.row.finished = True
            self.row.told(self.row)
        return super().decode(tokens)


def test_a_row_that_ends_while_its_text_is_made_has_one_answer_and_all_its_text(student: Path) -> None:
    text = EndsMeanwhile(student, 24)
    whole = text.tokenizer("caf\u00e9", add_special_tokens=False)["input_ids"]
    cut = next(at for at in range(1, len(whole)) if "\ufffd" in text.tokenizer.decode(whole[:at]))
    counted: list[int] = []
    counters = SimpleNamespace(tokens=lambda way, count: counted.append(count), request=lambda *_: None)
    desk = Desk(text, cast(Any, None), cast(Any, counters), "", "1", cast(Any, None), cast(Any, None))

    async def streamed() -> list[dict[str, Any]]:
        work = _Work([[1]], 100, time.monotonic() + 60, True)
        text.row, text.rest = work.rows[0], whole[cut:]
        text.row.answer.extend(whole[:cut])
        text.row.logprobs.extend([-0.5] * cut)
        text.row.told(text.row)
        events = [event async for event in desk._events(work, time.monotonic())]
        return [{"event": event.split()[1], **json.loads(event.split("data: ")[1])} for event in events]

    events = asyncio.run(streamed())
    assert [event["response"] for event in events if event["event"] == "answer"] == ["caf\u00e9"]
    assert "".join(event["text"] for event in events if event["event"] == "text") == "caf\u00e9"
    assert counted == [len(whole)]
