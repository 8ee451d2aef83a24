"""For scripts of tests: a process that dies in the middle of its work, as by a crash or a kill."""

import os
import signal
from collections.abc import Callable
from typing import Any


def die_before_call(number: int, *functions: tuple[Any, str]) -> None:
    """Have this process die by SIGKILL when (owner, name) of these are called the `number`th time in all, from 0 on."""
    left = number

    def dying(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            nonlocal left
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            left -= 1
            return function(*arguments, **options)

        return call

    for owner, name in functions:
        setattr(owner, name, dying(getattr(owner, name)))
