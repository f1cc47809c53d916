"""Figures as files, with names of files and classes in all scripts."""

import functools
from pathlib import Path

from matplotlib import font_manager, ft2font
from matplotlib.figure import Figure
from matplotlib.text import Text

from common.system.files import atomic_write

DPI = 120
FONTS_OF_OTHER_SCRIPTS = {
    *("Noto Sans CJK JP", "Noto Sans CJK SC", "Noto Sans", "Noto Sans Arabic", "Noto Sans Devanagari"),
    *("Arial Unicode MS", "Droid Sans Fallback", "WenQuanYi Zen Hei", "Unifont", "FreeSans"),
}


def save(figure: Figure, path: Path) -> None:
    """Writes a figure.

    Args:
        figure: Its texts get fonts that can draw them.
        path: The file; its suffix gives the format.

    Raises:
        UserError: The file cannot be written.
    """
    for text in figure.findobj(Text):
        text.set_fontfamily(_fonts())
    with atomic_write(path) as temporary:
        figure.savefig(temporary, dpi=DPI)


@functools.cache
def _fonts() -> list[str]:
    """matplotlib's own font, then those of other scripts that are installed."""
    installed = {font.name for font in font_manager.fontManager.ttflist}
    return ["DejaVu Sans", *sorted(installed & FONTS_OF_OTHER_SCRIPTS)]


@functools.cache
def _characters() -> frozenset[int]:
    """The characters that these fonts can draw."""
    files = (font_manager.findfont(name) for name in _fonts())
    return frozenset().union(*(ft2font.FT2Font(file).get_charmap() for file in files))


def printable(name: str) -> str:
    """Escapes a text for a figure.

    Args:
        name: Such as the name of a file or a class.

    Returns:
        The name; dollars start no formula, and what no font can draw is escaped.
    """
    text = name.encode(errors="backslashreplace").decode().replace("$", r"\$")
    return "".join(char if char == "\n" or ord(char) in _characters() else ascii(char)[1:-1] for char in text)
