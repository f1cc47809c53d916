"""The kernels of a network in C: files of functions and structs, each of one subject."""

import re
from pathlib import Path

KERNELS = Path(__file__).with_name("c")
DEFINED = re.compile(r"^(?:static [\w ]+?[ *]|struct )(\w+)(?: \{$|\()", re.MULTILINE)
USED = re.compile(r"struct (\w+)|(\w+)\(")


def select(texts: list[str], unused: tuple[str, ...]) -> list[str]:
    """Finds the source files that define what a network uses.

    Args:
        texts: The calls and the constants of the network.
        unused: Ends of the names of files that do not belong to it.

    Returns:
        Their contents, each after those that it uses.
    """
    sources = [
        path.read_text(encoding="utf-8")
        for path in sorted(KERNELS.glob("*.c"))
        if not path.stem.endswith(unused)
    ]
    defined = {name: source for source in sources for name in DEFINED.findall(source)}
    needed: dict[str, None] = {}

    def add(text: str) -> None:
        used = [each for pair in USED.findall(text) for each in pair if each in defined]
        for source in dict.fromkeys(defined[name] for name in used):
            if source not in needed and source != text:
                add(source)
                needed[source] = None

    for text in texts:
        add(text)
    return list(needed)
