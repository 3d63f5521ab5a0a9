"""What the README shows and names is there, and its Python runs."""

import re
from importlib.util import find_spec
from pathlib import Path

import torch

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def test_its_python_runs():
    (code,) = re.findall(r"^```python\n(.*?)^```", README, flags=re.M | re.S)
    names: dict = {}
    exec(compile(code, "README.md", "exec"), names)
    assert names["actions"].shape == (1, 50, 6)
    assert isinstance(names["pattern"], torch.Tensor)


def test_its_pictures_and_files_exist():
    linked = re.findall(r"\]\(([^)#:]+)\)", README)
    assert linked
    assert [path for path in linked if not (ROOT / path).is_file()] == []


def test_the_modules_of_its_table_exist():
    rows = re.findall(r"^\| (`.*`) \|", README, flags=re.M)
    named = [name for row in rows for name in re.findall(r"`(actlens[\w.]*)`", row)]
    assert len(named) > 5
    modules = [re.sub(r"\.[A-Z]\w*$", "", name) for name in named]
    assert [name for name in modules if find_spec(name) is None] == []
