"""Every error that actlens raises on purpose has a page, and every command says which."""

import pkgutil
import re
from importlib import import_module
from pathlib import Path

import pytest
import yaml

import actlens
from actlens.errors import ActlensError

ROOT = Path(__file__).parents[1]
PAGES = ROOT / "docs/errors"


def every_error():
    """All subclasses, after every module was imported."""
    import_module("actlens.sim")  # chooses the renderer before MuJoCo is imported
    for module in pkgutil.walk_packages(actlens.__path__, "actlens."):
        if not module.name.endswith("__main__"):
            import_module(module.name)
    found, todo = set(), [ActlensError]
    while todo:
        below = todo.pop().__subclasses__()
        todo += below
        found |= {error for error in below if error.__module__.startswith("actlens.")}
    return found


@pytest.fixture(scope="module")
def errors():
    return every_error()


def test_every_error_has_a_page_and_every_page_an_error(errors):
    pages = {page.stem for page in PAGES.glob("*.md")} - {"index"}
    assert pages == {error.__name__ for error in errors}


def test_every_page_shows_how_its_error_really_comes_about(errors):
    # Sybil executes the pages and compares the messages: it is enough that there are some.
    for error in errors:
        text = (PAGES / f"{error.__name__}.md").read_text()
        shown = re.findall(rf"^{error.__module__}\.{error.__name__}: \S.{{8}}", text, re.M)
        assert shown, f"{error.__name__}'s page shows no message"
        assert text.startswith(f"# {error.__name__}\n")


def test_the_index_and_the_navigation_name_every_page(errors):
    index = (PAGES / "index.md").read_text()
    site = yaml.safe_load((ROOT / "mkdocs.yml").read_text())
    (reference,) = (section["Reference"] for section in site["nav"] if "Reference" in section)
    (listed,) = (section["Errors"] for section in reference if "Errors" in section)
    for error in errors:
        assert f"]({error.__name__}.md)" in index
        assert f"errors/{error.__name__}.md" in listed
