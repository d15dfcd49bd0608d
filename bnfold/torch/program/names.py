"""Names that are not taken yet."""

import re
from collections.abc import Iterable


class FreshNames:
    """Gives out names that nothing has.

    Args:
        taken: The names that exist. Of a dotted one, all beginnings are taken too: modules.
    """

    def __init__(self, taken: Iterable[str]) -> None:
        self._taken: set[str] = set()
        self._numbers: dict[str, int] = {}
        for name in taken:
            parts = name.split(".")
            self._taken.update(".".join(parts[:length]) for length in range(1, len(parts) + 1))

    def fresh(self, base: str, otherwise: str = "") -> str:
        """A new name: `base`, or if that is taken one that begins with `base`, or with `otherwise` if that is given."""
        if base not in self._taken:
            self._taken.add(base)
            return base
        base = name = otherwise or base
        while name in self._taken:
            self._numbers[base] = self._numbers.get(base, 1) + 1
            name = f"{base}_{self._numbers[base]}"
        self._taken.add(name)
        return name


def identifier(text: str) -> str:
    """A text with everything that no Python name may hold replaced by underscores."""
    return re.sub(r"\W", "_", text, flags=re.ASCII)
