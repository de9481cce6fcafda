"""Data as tensors and pixels: NYU Depth V2, and pictures of any kind."""


class DataError(ValueError):
    """The data cannot be used as they are; the message says which file, what is wrong and what to do."""


def printable(name: str) -> str:
    """A file's name as text that any file and any terminal can hold: what is no UTF-8, or controls, as `\\x1b`."""
    text = name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
