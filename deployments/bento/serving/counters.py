"""What Prometheus is told: requests by outcome, tokens, latencies, the queue and the batches. Never a prompt."""


class Counters:
    """Metrics of one worker; made in the worker, once BentoML has said where its processes share them."""

    def __init__(self) -> None:
        from prometheus_client import Counter, Gauge, Histogram

        seconds = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
        rows = (1, 2, 4, 8, 16, 32, 64, 128, 256)
        self._requests = Counter("student_requests", "Requests by outcome", ["endpoint", "outcome"])
        self._seconds = Histogram("student_request_seconds", "Time to the answer [s]", ["endpoint"], buckets=seconds)
        self._tokens = Counter("student_tokens", "Tokens read (in) and answered (out)", ["direction"])
        self._waiting = Gauge("student_waiting_prompts", "Prompts that wait", multiprocess_mode="livesum")
        self._running = Gauge("student_running_prompts", "Prompts being answered", multiprocess_mode="livesum")
        self._waited = Histogram("student_wait_seconds", "Time a prompt waits for its turn [s]", buckets=seconds)
        self._batch = Histogram("student_step_rows", "Rows that get a token in one step", buckets=rows)

    def request(self, endpoint: str, outcome: str, seconds: float) -> None:
        """Count a request; only those that were answered count for the latency."""
        self._requests.labels(endpoint, outcome).inc()
        if outcome == "answered":
            self._seconds.labels(endpoint).observe(seconds)

    def tokens(self, direction: str, count: int) -> None:
        """Count tokens."""
        self._tokens.labels(direction).inc(count)

    def waiting(self, prompts: int, running: int) -> None:
        """Tell the length of the queue, and how many are being answered."""
        self._waiting.set(prompts)
        self._running.set(running)

    def waited(self, seconds: float) -> None:
        """Count how long a prompt waited."""
        self._waited.observe(seconds)

    def stepped(self, rows: int) -> None:
        """Count one step of a batch."""
        self._batch.observe(rows)
