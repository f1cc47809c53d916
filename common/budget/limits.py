"""The limits that were measured once, in a file: a measurement is a little different each time."""

import json
from pathlib import Path

from common.budget.target import Budget
from common.evaluation import results
from common.models import lineage
from common.system import units


def remembered(budget: Budget, path: Path, image_size: int, text: str, limits: Path) -> float:
    """Finds the limit of the first search for the same budget.

    Args:
        budget: The budget as it is measured now.
        path: The checkpoint that a fraction is one of.
        image_size: At which it is measured, in pixels.
        text: The amount that the user asks for.
        limits: The JSON file; the limit is added where it is a new one.

    Returns:
        That limit; for a budget that needs no measurement that of `budget`.

    Raises:
        UserError: The file cannot be written.
    """
    if budget.exact or not units.parse(budget.kind, text)[1]:
        return budget.limit
    try:
        known = json.loads(limits.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        known = {}
    if not isinstance(known, dict):
        known = {}
    key = f"{lineage.sha256(path)} {budget.kind} {float(text)} {image_size} pixels, {budget.conditions}"
    if not isinstance(known.get(key), float):
        known[key] = budget.limit
        limits.parent.mkdir(parents=True, exist_ok=True)
        results.write_text(json.dumps(known, indent=2), limits)
    return known[key]
