"""The table of hook points, printed from a model: the docs' reference page is its output."""

import re

from actlens.hooked_module import HookedRootModule

_FIRST = re.compile(r"^(encoder|decoder|vae)\.0\.")
_LATER = re.compile(r"^(encoder|decoder|vae)\.[1-9]\d*\.")


def _generic(name: str) -> str:
    return _FIRST.sub(r"\1.{l}.", name)


def hook_table(model: HookedRootModule) -> str:
    """A Markdown table of every hook point: name (layers as `{l}`), axes, and what is special.

    Layers beyond the first repeat its points and are left out.
    """
    rows = ["| hook point | axes | |", "|---|---|---|"]
    aliases: dict[str, list[str]] = {}
    for alias, name in model.hook_aliases.items():
        aliases.setdefault(name, []).append(alias)
    for name, point in model.hook_dict.items():
        if _LATER.match(name):
            continue
        notes = ["only when watched"] if point.on_demand else []
        notes += [f"alias `{_generic(alias)}`" for alias in aliases.get(name, ())]
        rows.append(f"| `{_generic(name)}` | {' '.join(point.axes)} | {', '.join(notes)} |")
    return "\n".join(rows) + "\n"
