"""One promotion or rollback of a student at a time, on all machines that share a Prefect server."""

from collections.abc import Iterator
from contextlib import contextmanager

from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import GlobalConcurrencyLimitCreate
from prefect.concurrency.sync import concurrency
from prefect.exceptions import ObjectAlreadyExists
from prefect.settings import get_current_settings

from deployments.errors import Failure

LEASE = 60.0  # [s], the shortest that Prefect has; after it the server frees the slot of a holder that was killed
WAIT = 300.0  # [s]


@contextmanager
def one_at_a_time(student: str, *, wait: float = WAIT) -> Iterator[None]:
    """Hold the only slot of the global concurrency limit `promote-STUDENT`, which is created if it is missing.

    Raises Failure after `wait` seconds, and where the limit was switched off or given more slots. Without a Prefect
    server nothing is held: the slot of a killed process would never be freed (a temporary API keeps its leases in
    memory), and on one machine the registry's own lock does it.
    """
    if get_current_settings().api.url is None:
        yield
        return
    name = f"promote-{student}"
    _create(name)
    entered = False
    try:
        with concurrency(name, occupy=1, strict=True, timeout_seconds=wait, lease_duration=LEASE):
            entered = True
            yield
    except Exception as error:
        if entered:
            raise
        raise Failure(
            f"the concurrency limit {name!r} of the Prefect server gave no slot within {wait:g} s "
            f"({type(error).__name__}: {error}): another promotion or rollback holds it; when none is at work, free it "
            f"with `prefect gcl update {name} --active-slots 0`, then start the same again"
        ) from error


def _create(name: str) -> None:
    with get_client(sync_client=True) as client:
        try:
            client.create_global_concurrency_limit(GlobalConcurrencyLimitCreate(name=name, limit=1))
        except ObjectAlreadyExists:
            found = client.read_global_concurrency_limit_by_name(name)
            if found.limit != 1 or not found.active:
                raise Failure(
                    f"the concurrency limit {name!r} of the Prefect server has limit = {found.limit}, active = "
                    f"{found.active}: it keeps promotions apart only with 1 and True; `prefect gcl update {name} "
                    f"--limit 1` and `prefect gcl enable {name}`"
                ) from None
