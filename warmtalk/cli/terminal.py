"""What the commands print to the terminal: errors with a remedy, and progress bars."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import httpx
import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from models.errors import WarmTalkError
from warmtalk.cli.packages import missing_package
from warmtalk.client.errors import ServerError, Unreachable

console = Console(stderr=True)

StepProgress = Callable[[str, int, int], None]  # step, done, total (0: not known)


@contextmanager
def errors(status: int = 1) -> Iterator[None]:
    """Print an error as one sentence and one remedy on stderr, and exit with `status`; no stack trace."""
    try:
        yield
    except WarmTalkError as error:
        raise _printed(error.code, error.message, error.remedy, status) from None
    except Unreachable as error:
        remedy = "Check the address given with --server, http://HOST:PORT, or leave it out to start a server here."
        raise _printed(error.code, error.message, remedy, status) from None
    except ServerError as error:
        raise _printed(error.code, error.message, error.remedy, status) from None
    except httpx.InvalidURL as error:
        remedy = "Write --server as http://HOST:PORT."
        raise _printed("bad_url", f"The address of the server is not a URL: {error}.", remedy, status) from None
    except httpx.HTTPError as error:  # of a command that sends requests of its own: load, profile
        message = f"The server cannot be reached: {str(error).rstrip('.') or type(error).__name__}."
        remedy = "Check the address, http://HOST:PORT, and whether the server runs."
        raise _printed("unreachable", message, remedy, status) from None
    except ImportError as error:
        message, remedy = missing_package(error)
        raise _printed("missing_package", message, remedy, status) from None
    except OSError as error:
        message = f"{error.filename or 'A file'}: {error.strerror or error}."
        remedy = "Check the path, its permissions, and the free space on the disk."
        raise _printed("file", message, remedy, status) from None
    except KeyboardInterrupt:
        raise typer.Exit(130) from None


def print_error(code: str, message: str, remedy: str) -> None:
    """Brackets in the text are printed as they are."""
    console.print(f"[bold red]{escape(code)}[/] {escape(message)}", highlight=False)
    if remedy:
        console.print(f"[bold]→[/] {escape(remedy)}", highlight=False)


def _printed(code: str, message: str, remedy: str, status: int) -> typer.Exit:
    print_error(code, message, remedy)
    return typer.Exit(status)


def print_warning(text: str) -> None:
    console.print(f"[yellow]warning[/] {escape(text)}", highlight=False)


def progress_bar() -> Progress:
    """A bar on stderr that disappears when the work is done. Tasks need the field `note`."""
    return Progress(
        SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[note]}"),
        TimeElapsedColumn(), console=console, transient=True,
    )  # fmt: skip


@contextmanager
def step_progress(first: str) -> Iterator[StepProgress]:
    """A bar for work in several steps: yields a function to call with the step's name, what is done, and the total."""
    with progress_bar() as bar:
        task = bar.add_task(first, total=None, note="")
        yield lambda step, done, total: bar.update(
            task, description=step, completed=done, total=total or None, note=f"{done} / {total or '?'}"
        )
