"""The documentation builds without a warning, and its tutorials run while it does."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from PIL import Image

ROOT = Path(__file__).parents[1]
TUTORIALS = sorted(path.stem for path in (ROOT / "docs/tutorials").glob("*.py"))


def mkdocs_build(root, site, **environment):
    return subprocess.run(
        [Path(sys.executable).parent / "mkdocs", "build", "--strict", "--site-dir", site],
        cwd=root,
        capture_output=True,
        text=True,
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1"} | environment,
        check=False,
    )


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The built documentation; every tutorial was run for it."""
    site = tmp_path_factory.mktemp("site")
    done = mkdocs_build(ROOT, site)
    assert done.returncode == 0, done.stderr[-4000:]
    return site


@pytest.mark.parametrize("name", TUTORIALS)
def test_a_tutorials_page_holds_what_its_run_printed_and_drew(site, name):
    page = (site / f"tutorials/{name}/index.html").read_text()
    assert '<div class="output">' in page
    assert "When this misleads" in page
    pictures = sorted((site / "tutorials").glob(f"{name}-*.png"))
    assert pictures
    for picture in pictures:
        assert f'src="../{picture.name}"' in page
        assert len(Image.open(picture).convert("L").getcolors(256)) > 20  # not an empty canvas
    notebook = json.loads((site / f"tutorials/{name}.ipynb").read_text())
    assert any(cell.get("outputs") for cell in notebook["cells"])


def test_every_tutorial_is_in_the_navigation():
    listed = next(part["Tutorials"] for part in settings()["nav"] if "Tutorials" in part)
    assert sorted(listed) == [f"tutorials/{name}.md" for name in TUTORIALS]


def settings():
    return yaml.safe_load((ROOT / "mkdocs.yml").read_text())


TUTORIAL = """\
# %% language="bash"
# python -c "import sys; print('\\033[1m<bold>\\033[0m'); sys.stdout.flush(); print('and on')"

# %%
import sys
from pathlib import Path

import fact

print("told by", Path(sys.prefix).resolve())
assert fact.TRUE, "the claim is broken"
"""


@pytest.fixture
def small_site(tmp_path):
    """The same settings, one tutorial about a library that can be broken; no other plugin."""
    (tmp_path / "docs/tutorials").mkdir(parents=True)
    (tmp_path / "docs/index.md").write_text("# Home\n")
    (tmp_path / "docs/tutorials/claim.py").write_text(TUTORIAL)
    ours = settings()
    own = {
        "nav": ["index.md", "tutorials/claim.md"],
        "hooks": [str(ROOT / hook) for hook in ours["hooks"]],
        "extra_css": [],
        "plugins": [],
    }
    (tmp_path / "mkdocs.yml").write_text(yaml.safe_dump(ours | own))
    # Another kernel that claims Python's name, as other programs install them.
    foreign = tmp_path / "jupyter/kernels/python3"
    foreign.mkdir(parents=True)
    (foreign / "kernel.json").write_text(
        json.dumps({"argv": ["/bin/false"], "display_name": "another", "language": "python"})
    )
    return tmp_path


def test_a_claim_that_no_longer_holds_fails_the_build(small_site):
    where = {"PYTHONPATH": str(small_site), "JUPYTER_PATH": str(small_site / "jupyter")}
    (small_site / "fact.py").write_text("TRUE = True\n")
    built = mkdocs_build(small_site, small_site / "site", **where)
    assert built.returncode == 0, built.stderr[-4000:]
    page = (small_site / "site/tutorials/claim/index.html").read_text()
    assert f"told by {Path(sys.prefix).resolve()}\n" in page
    assert "<pre>&lt;bold&gt;\nand on\n</pre>" in page  # no colours, in one piece

    # The library breaks, the page is as it was: nothing of the run before may be shown.
    (small_site / "fact.py").write_text("TRUE = False\n")
    broken = mkdocs_build(small_site, small_site / "site", **where)
    assert broken.returncode != 0
    assert "the claim is broken" in broken.stderr


@pytest.mark.parametrize(
    ("cell", "said"),
    [
        ("import warnings\nwarnings.warn('beware')", "beware"),
        ("import matplotlib.pyplot as plt\nplt.plot([1, 2])\nplt.show()", "alt"),
        ('# %% language="bash"\n# false', "exit status 1"),
    ],
    ids=["warning", "figure without words", "failing command"],
)
def test_what_a_reader_should_not_see_fails_the_build(small_site, cell, said):
    (small_site / "docs/tutorials/claim.py").write_text(f"# %%\n{cell}\n")
    done = mkdocs_build(small_site, small_site / "site")
    assert done.returncode != 0
    assert said in done.stderr
