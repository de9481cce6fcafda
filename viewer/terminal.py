"""Lines for a terminal: whatever names they hold, and whoever reads them."""

import argparse
import io
import os
import sys
from collections.abc import Callable
from functools import partial
from typing import Any, NoReturn, TextIO

from datasets import printable


def say(*lines: str) -> None:
    """Prints lines whose names may hold anything."""
    print(*map(printable, lines), sep="\n")


def try_to_draw(draw: Callable[[], object]) -> None:
    """Draws; where that fails it is said, and nothing else is lost."""
    try:
        draw()
    except Exception as error:  # whatever matplotlib and its settings lead to
        print(f"warning: not all is drawn: {type(error).__name__}: {printable(str(error))}", file=sys.stderr)


class _Help(argparse.HelpFormatter):
    def _get_help_string(self, action: argparse.Action) -> str | None:
        shown = " ".join(action.default) if isinstance(action.default, list) else action.default
        return action.help if shown in (None, False, argparse.SUPPRESS) else f"{action.help} (default: {shown})"


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:  # the sentence alone, not with all flags
        self.exit(2, f"{self.prog}: {message}; see --help\n")


def new_parser(description: str, prog: str | None = None) -> argparse.ArgumentParser:
    """A parser that shows defaults, where there is one, and takes no abbreviated flags."""
    return _Parser(prog=prog, description=description, formatter_class=_Help, allow_abbrev=False)


class ForgivingStream:
    """A text stream whose reader may go away, as `| head` does: from then on, what is written is dropped.

    None, as of a closed stream, keeps nothing. Any other error, such as a full disk, is raised if `needed`.
    """

    def __init__(self, stream: TextIO | None, needed: bool) -> None:
        self.stream, self.needed = stream or open(os.devnull, "w"), needed  # noqa: SIM115  # for the whole command
        if isinstance(self.stream, io.TextIOWrapper):
            self.stream.reconfigure(errors="backslashreplace")

    def __getattr__(self, name: str) -> Any:
        return partial(self._try, name) if name in ("write", "flush") else getattr(self.stream, name)

    def _try(self, name: str, *text: str) -> int:
        try:
            getattr(self.stream, name)(*text)
        except OSError as error:
            os.dup2(os.open(os.devnull, os.O_WRONLY), self.stream.fileno())  # what is left in its buffer goes there
            if self.needed and not isinstance(error, BrokenPipeError):
                raise OSError(error.errno, error.strerror, "standard output") from error
        return sum(map(len, text))
