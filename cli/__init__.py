"""The command line. It reads projections and says verbs; no rule lives here."""

from __future__ import annotations

import os
import sys
from typing import Any

import typer

from .. import __version__
from . import exits, look, messages, verbs
from .demo import demo
from .doctor import doctor
from .new import new
from .rebuild import rebuild
from .run import run
from .settings import JsonOption

app = typer.Typer(
    help="refold: an event-sourced message bus for AI agents.", no_args_is_help=True, epilog=exits.epilog(),
    pretty_exceptions_enable=False,
)  # fmt: skip
for command in (
    new, run, messages.send, messages.request, look.ps, look.show, look.state, look.tail, verbs.cancel, verbs.retry,
    rebuild, doctor, demo,
):  # fmt: skip
    app.command()(command)
app.add_typer(verbs.dlq, name="dlq")


@app.command()
def version(json: JsonOption = False) -> None:
    """Print the versions of refold, Python and SQLite."""
    import platform
    import sqlite3

    from .output import as_json, console

    found = {"refold": __version__, "python": platform.python_version(), "sqlite": sqlite3.sqlite_version}
    if json:
        as_json(found)
    else:
        console.print(", ".join(f"{name} {number}" for name, number in found.items()))


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit. No traceback for a user's mistake: REFOLD_DEBUG=1 shows them all."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if os.environ.get("REFOLD_DEBUG"):
        sys.exit(_call(arguments))
    try:
        code = _call(arguments)
    except (KeyboardInterrupt, EOFError):
        code = exits.INTERRUPTED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = exits.OK
    except Exception as error:  # noqa: BLE001 - the one seam: told to the user, with a code of its own
        code = _tell(error, "--json" in arguments)
    sys.exit(code)


def _call(arguments: list[str]) -> int:
    import click

    try:
        code: Any = typer.main.get_command(app)(arguments, prog_name="refold", standalone_mode=False)
    except click.exceptions.Abort:
        return exits.INTERRUPTED
    except click.exceptions.Exit as error:
        return error.exit_code
    except click.ClickException as error:
        error.show()
        return error.exit_code
    return code if isinstance(code, int) else exits.OK


def _tell(error: Exception, json: bool) -> int:
    """Print an error on standard error: what, where, what to do."""
    from ..bus.errors import RefoldError
    from .output import errors

    code = exits.code_of(error)
    if json:
        import orjson

        problem = {"type": type(error).__name__, "message": str(error), "exit_code": code}
        sys.stderr.buffer.write(orjson.dumps({"error": problem}) + b"\n")
    elif isinstance(error, RefoldError):
        errors.print(f"[bold red]{type(error).__name__}[/]: ", end="")
        errors.print(str(error), markup=False, soft_wrap=True)
    else:
        errors.print(f"[bold red]a bug of refold[/]: {type(error).__name__}: ", end="")
        errors.print(f"{error} (REFOLD_DEBUG=1 shows where)", markup=False, soft_wrap=True)
    return code
