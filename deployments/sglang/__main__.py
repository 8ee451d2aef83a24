"""python -m deployments.sglang serve --model FOLDER

Serves a teacher with SGLang until it is interrupted, on this machine's loopback unless told otherwise, with what an
offline teacher needs: hidden states as base64, no radix cache, no chunked prefill, metrics. SGLang has an environment
of its own: `make sglang-cpu` makes one for a machine without a GPU, and REDISTILL_SGLANG_PYTHON names another.

The key that clients have to show is read from REDISTILL_TEACHER_API_KEY.

exit codes: 0 interrupted, 1 the server failed, 2 it cannot be started like this
"""

import argparse
import os
import shlex
import signal
import sys
from pathlib import Path

from deployments.errors import Failure, InputError
from deployments.sglang.server import Options, argv, device_of, environment, interpreter, serving


def main(given: list[str] | None = None) -> int:
    """Serve, or print the command; returns the exit code."""
    arguments = _parser().parse_args(given)
    options = Options(
        model=arguments.model,
        host=arguments.host,
        port=arguments.port,
        device=device_of(arguments.device),
        dtype=arguments.dtype,
        max_tokens=arguments.max_tokens,
        tensor_parallel=arguments.tensor_parallel,
        data_parallel=arguments.data_parallel,
        hidden_states=arguments.hidden_states,
        api_key=os.environ.get("REDISTILL_TEACHER_API_KEY", ""),
        extra=arguments.extra,
    )
    if options.host not in {"127.0.0.1", "localhost", "::1"} and not options.api_key:
        print(f"note: everybody who reaches {options.host} can ask: set REDISTILL_TEACHER_API_KEY", file=sys.stderr)
    try:
        if arguments.command == "argv":
            words = [f"{name}={value}" for name, value in environment(options).items()]
            line = [*words, interpreter(arguments.python), "-m", "sglang.launch_server", *argv(options, options.port)]
            print(shlex.join(line))
            return os.EX_OK
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(os.EX_OK))
        with serving(options, python=arguments.python, log=arguments.log, timeout=arguments.timeout) as served:
            print(f"{options.model}: {served.url}, ready after {served.seconds_to_ready:.0f} s", flush=True)
            code = served.process.wait()
            raise Failure(f"SGLang at {served.url} ended by itself with exit code {code}")
    except KeyboardInterrupt:
        return os.EX_OK
    except (InputError, Failure, OSError) as error:  # of the last kind is a log that cannot be written
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 2 if isinstance(error, InputError) else 1


def _words(text: str) -> list[str]:
    try:
        return shlex.split(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} cannot be split into words ({error})") from error


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m deployments.sglang",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    defaults = Options(model="")
    for name, told in (("serve", "serve until interrupted"), ("argv", "print the command that serve would run")):
        command = commands.add_parser(name, help=told, description=told, allow_abbrev=False)
        add = command.add_argument
        add("--model", required=True, help="folder or hub name of the teacher")
        add("--host", default=defaults.host, help="address to listen on; default: %(default)s")
        add("--port", type=int, default=30000, help="0: a free one; default: %(default)s")
        add("--device", choices=["auto", "cpu", "cuda"], default="auto", help="default: %(default)s")
        add("--dtype", default=defaults.dtype, help="of the weights; auto: float32 on a CPU; default: %(default)s")
        add("--max-tokens", type=int, default=0, help="of the cache [tokens]; 0: 8,192 on a CPU, what fits on a GPU")
        add("--tensor-parallel", type=int, default=1, help="GPUs that share a copy [count]; default: %(default)s")
        add("--data-parallel", type=int, default=1, help="copies [count]; default: %(default)s")
        add("--hidden-states", choices=["bfloat16", "float32", "lists"], default=defaults.hidden_states, help="sent as")
        add("--python", default="", help="interpreter of SGLang's environment; default: that of make sglang-cpu")
        add("--log", type=Path, help="file for what the server says; default: a temporary one")
        add("--timeout", type=float, default=600.0, help="longest time to start [s]; default: %(default)s")
        add("--extra", type=_words, default=[], help="further words for SGLang, as one argument")
    return parser


if __name__ == "__main__":
    sys.exit(main())
