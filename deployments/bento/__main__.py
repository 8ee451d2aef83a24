"""Build, export and serve Bentos by hand.

    python -m deployments.bento build CHECKPOINT --home STORE
    python -m deployments.bento export CHECKPOINT_OR_BENTO OUT     # then: docker build OUT
    python -m deployments.bento serve CHECKPOINT_OR_BENTO --port 3000

A retrain builds its own Bento; its path is in runs/RETRAIN_ID/bento/manifest.json.
"""

import argparse
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import psutil

from deployments.bento.build import Bento, build
from deployments.bento.export import as_bento, export
from deployments.bento.smoke import serve
from deployments.errors import Failure, InputError
from deployments.settings import PackagingSettings


def main() -> None:
    """Run one of the commands."""
    arguments = _arguments()
    command: Callable[[argparse.Namespace], None] = arguments.command
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        command(arguments)
    except (InputError, ValueError) as error:
        sys.exit(_said(error, 2))
    except Failure as error:
        sys.exit(_said(error, 1))
    except KeyboardInterrupt:
        sys.exit(130)


def _build(arguments: argparse.Namespace) -> None:
    bento = _built(arguments, Path(arguments.home))
    print(f"{bento.tag} lies at {bento.path}")


def _export(arguments: argparse.Namespace) -> None:
    with _bento(arguments) as bento:
        dockerfile = export(bento.path, Path(arguments.out))
    print(f"wrote {dockerfile}: docker build {dockerfile.parent}")


def _serve(arguments: argparse.Namespace) -> None:
    with _bento(arguments) as bento, serve(bento, port=arguments.port, own_key=False) as server:
        print(f"{bento.tag} answers at {server.url}/generate; Ctrl-C ends it", flush=True)
        psutil.Process(server.pid).wait()


@contextmanager
def _bento(arguments: argparse.Namespace) -> Iterator[Bento]:
    """Give the Bento in a folder, or one that is built for the moment when the folder is a checkpoint."""
    if found := as_bento(Path(arguments.source)):
        yield found
        return
    with TemporaryDirectory(prefix="bento-store-") as home:
        yield _built(arguments, Path(home))


def _prompts(file: Path) -> list[str]:
    try:
        return file.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"--prompts {str(file)!r} cannot be read ({error}): give a text file, a prompt a line"
        ) from None


def _built(arguments: argparse.Namespace, home: Path) -> Bento:
    prompts = _prompts(Path(arguments.prompts)) if arguments.prompts else []
    return build(
        Path(arguments.source),
        student=arguments.student,
        model_version=arguments.model_version,
        retrain_id="local",
        labels={},
        max_prompt_tokens=arguments.max_prompt_tokens,
        max_new_tokens=arguments.max_new_tokens,
        settings=PackagingSettings(
            format=arguments.format, api_key_env=arguments.api_key_env, min_agreement=arguments.min_agreement
        ),
        home=home,
        log=lambda line: print(line, file=sys.stderr),
        prompts=[prompt for prompt in prompts if prompt.strip()],
    )


def _share(text: str) -> float:
    value = float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text} is no share: give a number from 0 to 1")
    return value


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m deployments.bento", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    made = PackagingSettings()
    for name, command, what in (
        ("build", _build, "put the Bento of a checkpoint into a store"),
        ("export", _export, "write a container's build context"),
        ("serve", _serve, "serve on loopback"),
    ):
        one = commands.add_parser(name, help=what, description=what)
        one.set_defaults(command=command)
        one.add_argument("source", metavar="CHECKPOINT" if name == "build" else "CHECKPOINT_OR_BENTO")
        if name == "build":
            one.add_argument("--home", required=True, metavar="STORE", help="folder of the Bento store")
        elif name == "export":
            one.add_argument("out", metavar="OUT", help="folder to write, which must not be there yet")
        else:
            one.add_argument("--port", type=int, default=0, help="0 takes a free one (default)")
        build_options = one.add_argument_group("of a checkpoint")
        build_options.add_argument("--student", default="student", help="name of the Bento (default: %(default)s)")
        build_options.add_argument("--model-version", default="0", help="what answers say (default: %(default)s)")
        build_options.add_argument("--max-prompt-tokens", type=int, default=512, help="[tokens] (default: %(default)s)")
        build_options.add_argument("--max-new-tokens", type=int, default=64, help="[tokens] (default: %(default)s)")
        build_options.add_argument("--format", choices=("torch", "onnx-int8"), default=made.format)
        build_options.add_argument("--min-agreement", type=_share, default=made.min_agreement, metavar="SHARE")
        build_options.add_argument("--prompts", metavar="FILE", help="a prompt a line, to measure onnx-int8 on")
        build_options.add_argument("--api-key-env", default="", metavar="NAME", help="variable that holds the key")
    return parser.parse_args()


def _said(error: Exception, code: int) -> int:
    print(f"error: {error}", file=sys.stderr)
    return code


if __name__ == "__main__":
    main()
