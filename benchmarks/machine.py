"""What a benchmark ran on, in the words that its section of RESULTS.md begins with."""

import os
import platform
from importlib.metadata import PackageNotFoundError, version

import psutil


def installed(name: str) -> str:
    """Return the version of a package, or that there is none."""
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


def machine(*packages: str) -> str:
    """Return cores, memory, and the versions of Python and of these packages."""
    return (
        f"{os.cpu_count()} cores, {psutil.virtual_memory().total / 2**30:.0f} GiB, "
        f"Python {platform.python_version()}, " + ", ".join(f"{name} {installed(name)}" for name in packages)
    )
