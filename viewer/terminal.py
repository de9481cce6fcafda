"""Lines for a terminal: whatever names they hold, and whoever reads them."""

import argparse
import io
import os
import sys
from collections.abc import Callable
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


class _Help(argparse.ArgumentDefaultsHelpFormatter):
    def _get_help_string(self, action: argparse.Action) -> str | None:
        return action.help if action.default in (None, False) else super()._get_help_string(action)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """Ends with the sentence alone, not with all flags."""
        self.exit(2, f"{self.prog}: {message}; see --help\n")


def new_parser(description: str, prog: str | None = None) -> argparse.ArgumentParser:
    """A parser that shows defaults, where there is one, and takes no abbreviated flags."""
    return _Parser(prog=prog, description=description, formatter_class=_Help, allow_abbrev=False)


class ForgivingStream:
    """A text stream whose reader may go away, as `| head` does: from then on, what is written is dropped.

    Args:
        stream: standard output or error; None, where it is closed, takes everything and keeps nothing. What its
            encoding lacks, such as a name that is not UTF-8, is written with backslashes.
        needed: whether `write` and `flush` raise OSError where another reason, such as a full disk, keeps the text
            from being written.
    """

    def __init__(self, stream: TextIO | None, needed: bool) -> None:
        self.stream, self.needed = stream or open(os.devnull, "w"), needed  # noqa: SIM115  # for the whole command
        if isinstance(self.stream, io.TextIOWrapper):
            self.stream.reconfigure(errors="backslashreplace")

    def write(self, text: str) -> int:
        """Writes the text."""
        self._tried(lambda: self.stream.write(text))
        return len(text)

    def flush(self) -> None:
        """Flushes the stream."""
        self._tried(self.stream.flush)

    def _tried(self, action: Callable[[], Any]) -> None:
        try:
            action()
        except OSError as error:
            os.dup2(os.open(os.devnull, os.O_WRONLY), self.stream.fileno())  # what is left in its buffer goes there
            if self.needed and not isinstance(error, BrokenPipeError):
                raise OSError(error.errno, error.strerror, "standard output") from error

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)
