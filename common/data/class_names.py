"""How the class names of two places differ, in words."""

import unicodedata

SHOWN = 5  # names in a message, at most


def difference(one: list[str], other: list[str], here: str, there: str) -> str:
    """Describes how two lists of class names differ.

    Names that differ only in their Unicode form look the same: é is one character, or e and an accent.

    Args:
        one: Class names, each once.
        other: Those that they are compared with, each once.
        here: What has the names in `one`, such as "train/".
        there: What has the names in `other`.

    Returns:
        Such as "'fox' is only in train/; 'owl' and 'yak' are only in test/"; "" where both have the same
        names, in any order.
    """
    unmatched = {_composed(name): name for name in other if name not in one}
    forms, only = [], []
    for name in one:
        if name in other:
            continue
        twin = unmatched.pop(_composed(name), None)
        if twin is None:
            only.append(name)
        else:
            forms.append(f"{name!r} has another Unicode form in {here} ({_form(name)}) than in {there}"
                         f" ({_form(twin)})")  # fmt: skip
    parts = [f"{listed(forms, str)}: rename one"] if forms else []
    for names, place in ((only, here), (list(unmatched.values()), there)):
        if names:
            parts.append(f"{listed(names)} {'is' if len(names) == 1 else 'are'} only in {place}")
    return "; ".join(parts)


def listed(names: list, write=repr) -> str:
    """Writes a list of names, the first few of a long one.

    Args:
        names: What is listed, not empty.
        write: Writes one of them.

    Returns:
        Such as "'cat', 'dog' and 2 more".
    """
    texts, more = [write(name) for name in names[:SHOWN]], len(names) - SHOWN
    last = f"{more} more" if more > 0 else texts.pop()
    return f"{', '.join(texts)} and {last}" if texts else last


def _composed(name: str) -> str:
    return unicodedata.normalize("NFC", name)


def _form(name: str) -> str:
    forms = [form for form in ("NFC", "NFD") if unicodedata.is_normalized(form, name)]
    return forms[0] if forms else "neither NFC nor NFD"
