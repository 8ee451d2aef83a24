"""Serves a student: all the code inside its Bento, where model.json and checkpoint/ lie beside this folder.

    bentoml serve STUDENT:VERSION --host 127.0.0.1
    curl 127.0.0.1:3000/generate -H 'content-type: application/json' -d '{"prompts": ["..."]}'

It imports nothing of ours from outside this folder. Open without a key, since they tell nothing of any prompt: /livez,
/readyz, /healthz, /metrics, and the description of the service (/docs.json).
"""

import json
import os
import threading
from pathlib import Path

import bentoml

from . import files
from .app import Desk, application
from .batches import Decoder, Row
from .counters import Counters
from .engines import engine
from .limits import Limits, key_of, request_model
from .text import Text

HERE = Path(__file__).resolve().parents[1]
MODEL = json.loads((HERE / "model.json").read_text("utf-8"))
LIMITS = Limits.of(MODEL)
PATIENCE = 60.0  # a decoder that has something to do and does none of it for so long is not ready [s]
app, open_for = application(LIMITS)


# BentoML's own time limit only catches what ours does not.
@bentoml.service(name="student", workers=1, traffic={"timeout": LIMITS.max_latency_ms / 1000 + 30})
@bentoml.asgi_app(app, path="/")
class Student:
    """One worker with one model; prompts that wait at the same time are answered in one batch."""

    def __init__(self) -> None:
        os.environ["HF_HUB_OFFLINE"] = "1"  # all that is needed lies in the checkpoint
        key = key_of(MODEL["api_key_env"])
        files.check(HERE / "checkpoint", MODEL["files"])
        text = Text(HERE / "checkpoint", MODEL["max_prompt_tokens"])
        counters = Counters()
        self.decoder = Decoder(
            engine(HERE / "checkpoint", text.vocabulary),
            stops=text.stops,
            pad=text.pad,
            max_batch_size=MODEL["max_batch_size"],
            max_waiting=LIMITS.max_waiting,
            seen=counters,
        )
        self._answer_once(text)
        desk = Desk(text, self.decoder, counters, key, MODEL["model_version"], LIMITS, request_model(LIMITS))
        open_for(desk)

    def _answer_once(self, text: Text) -> None:
        """Answer a prompt before anybody may ask: a model that cannot is never ready."""
        done = threading.Event()
        row = Row(text.encode(["0"])[0], 2, lambda row: done.set() if row.finished else None)
        self.decoder.submit([row])
        done.wait()
        if row.failed:
            raise RuntimeError(f"the model cannot answer ({row.failed}): it is not served") from row.failed

    def __is_ready__(self) -> bool:
        """Return whether /readyz says yes."""
        return self.decoder.healthy(PATIENCE)

    def __is_alive__(self) -> bool:
        """Return whether /livez says yes."""
        return self.decoder.thread.is_alive()

    @bentoml.on_shutdown  # type: ignore[untyped-decorator]
    def close(self) -> None:
        """Answer no more."""
        self.decoder.end()
