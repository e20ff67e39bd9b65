"""The command line. It reads projections and says verbs; no rule lives here."""

from __future__ import annotations

import os
import sys
from typing import Annotated, Any

import typer

from .. import __version__
from . import exits, look, messages, servers, verbs
from .copying import copy
from .demo import demo
from .doctor import doctor
from .new import new
from .output import NobodyReads, as_json, errors, say
from .rebuild import rebuild
from .run import run
from .settings import JsonOption
from .tail import tail

DEBUG = "--debug"
USAGE_ERROR = typer.BadParameter.__mro__[2]
"""ClickException: of click, or of the copy of it that newer releases of typer bring along."""

app = typer.Typer(
    help="refold: an event-sourced message bus for AI agents.", no_args_is_help=True, epilog=exits.epilog(),
    pretty_exceptions_enable=False, rich_markup_mode="rich",
)  # fmt: skip
for command in (
    new, run, messages.send, messages.request, look.ps, look.show, look.state, tail, verbs.cancel, verbs.retry,
    rebuild, copy, doctor, demo,
):  # fmt: skip
    app.command()(command)
app.add_typer(verbs.dlq, name="dlq")
app.add_typer(servers.broker, name="broker")


@app.callback()
def options(
    debug: Annotated[bool, typer.Option(DEBUG, help="Show the traceback of an error. Also: REFOLD_DEBUG=1.")] = False,
) -> None:
    """refold: an event-sourced message bus for AI agents."""  # `main` takes --debug wherever it stands


@app.command()
def version(json: JsonOption = False) -> None:
    """Print the versions of refold, Python and SQLite."""
    import platform
    import sqlite3

    found = {"refold": __version__, "python": platform.python_version(), "sqlite": sqlite3.sqlite_version}
    if json:
        as_json(found)
    else:
        say(", ".join(f"{name} {number}" for name, number in found.items()))


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit. No traceback for a user's mistake; `--debug` (REFOLD_DEBUG=1) shows them all."""
    given = sys.argv[1:] if arguments is None else arguments
    arguments = _without_debug(given)
    if arguments != given or os.environ.get("REFOLD_DEBUG"):
        sys.exit(_call(arguments))
    try:
        code = _call(arguments)
    except (KeyboardInterrupt, EOFError):
        code = exits.INTERRUPTED
    except NobodyReads:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = exits.OK
    except Exception as error:  # noqa: BLE001 - the one seam: told to the user, with a code of its own
        code = exits.code_of(error)
        _tell(error, code, arguments)
    sys.exit(code)


def _without_debug(arguments: list[str]) -> list[str]:
    end = arguments.index("--") if "--" in arguments else len(arguments)
    return [a for a in arguments[:end] if a != DEBUG] + arguments[end:]


def _call(arguments: list[str]) -> int:
    try:
        code: Any = typer.main.get_command(app)(arguments, prog_name="refold", standalone_mode=False)
    except typer.Abort:
        return exits.INTERRUPTED
    except typer.Exit as error:
        return error.exit_code
    except Exception as error:
        if not isinstance(error, USAGE_ERROR):
            raise
        _tell_usage(error, "--json" in arguments)
        return exits.USAGE
    return code if isinstance(code, int) else exits.OK


def _tell_usage(error: Any, json: bool) -> None:
    if json:
        _json_error(error, error.format_message(), exits.USAGE)
    else:
        error.show()


def _tell(error: Exception, code: int, arguments: list[str]) -> None:
    """Print an error on standard error: what, where, what to do."""
    from ..bus.errors import RefoldError

    if "--json" in arguments:
        _json_error(error, str(error), code)
    elif isinstance(error, RefoldError):
        errors.print(f"[bold red]{type(error).__name__}[/]: ", end="")
        say(str(error), errors)
    else:
        errors.print("[bold red]unexpected[/] ", end="")
        say(f"{type(error).__name__}: {error}", errors)
        say("This is a bug of refold, or of code that it called: --debug shows where.", errors)


def _json_error(error: Exception, message: str, code: int) -> None:
    import orjson

    problem = {"type": type(error).__name__, "message": message, "exit_code": code}
    sys.stderr.buffer.write(orjson.dumps({"error": problem}) + b"\n")
