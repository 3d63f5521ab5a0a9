"""Tutorials are programs: `mkdocs build` runs each and shows what that run printed and drew.

A tutorial is a script in percent format: `# %%` begins a cell, `# %% [markdown]` a text. It runs in
a Jupyter kernel and an empty folder of its own, on this very interpreter. A cell that fails, that
warns, or that draws a figure without an `alt` text ends the build. Nothing is kept from one build
to the next.
"""

import os
import re
import sys
from base64 import b64decode
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cache
from html import escape
from pathlib import Path
from tempfile import TemporaryDirectory

import jupytext
import nbformat
from ipykernel.kernelspec import get_kernel_dict
from jupyter_client import AsyncKernelManager
from jupyter_client.kernelspec import KernelSpec, KernelSpecManager
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from traitlets.config import Config

FOLDER = "tutorials/"
AT_ONCE = 2
SHELL = "%%bash"
COLOURS = re.compile(r"\x1b\[[\d;]*m")  # kernels tell all programs that they write to a terminal


def on_files(files, config):
    """Put the page, the pictures and the notebook of each tutorial in the place of its script."""
    scripts = [file for file in files if file.src_uri.startswith(FOLDER)]
    scripts = [file for file in scripts if file.src_uri.endswith(".py")]
    with ThreadPoolExecutor(AT_ONCE) as pool:
        pages = list(pool.map(lambda file: tutorial(file.name, file.content_string), scripts))
    for script, page in zip(scripts, pages, strict=True):
        files.remove(script)
        for name, content in page.files.items():
            files.append(File.generated(config, FOLDER + name, content=content))
    return files


@dataclass
class Tutorial:
    """The Markdown of a tutorial, and the files beside it."""

    name: str
    markdown: list[str] = field(default_factory=list)
    pictures: dict[str, bytes] = field(default_factory=dict)
    notebook: str = ""

    @property
    def files(self):
        """What is published, by name."""
        named = {f"{self.name}.md": "\n\n".join(self.markdown), f"{self.name}.ipynb": self.notebook}
        return named | self.pictures


@cache  # a live preview runs again only what was written anew
def tutorial(name, source):
    """Run the script and write its page."""
    notebook = run(name, jupytext.reads(source, fmt="py:percent"))
    page = Tutorial(name, notebook=nbformat.writes(notebook))
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            page.markdown.append(cell.source)
        elif cell.cell_type == "code":
            language, source = "python", cell.source
            if is_shell(cell):
                language, source = "bash", source.removeprefix(SHELL).strip()
            page.markdown.append(f"```{language}\n{source}\n```")
            for output in cell.outputs:
                add_output(page, cell, output)
    page.markdown.append(f"[This page as a notebook]({name}.ipynb){{ download }}")
    return page


class ThisInterpreter(KernelSpecManager):
    """Every kernel is this interpreter's own, whatever else is installed on the machine."""

    def get_kernel_spec(self, kernel_name):
        """The command that starts it."""
        ours = {"PATH": Path(sys.executable).parent, "PYTHONPATH": Path(__file__).parents[1]}
        env = {key: f"{place}{os.pathsep}{os.environ.get(key, '')}" for key, place in ours.items()}
        # Two at once, each with a thread for every core, take twice as long as with one each.
        return KernelSpec(env=env | {"OMP_NUM_THREADS": "1"}, **get_kernel_dict())


class ThisKernel(AsyncKernelManager):
    """A kernel that is reached through files of its own, not through ports of the machine."""

    def __init__(self, **options):
        super().__init__(**options, kernel_spec_manager=ThisInterpreter(), transport="ipc")


def run(name, notebook):
    """The notebook with its outputs."""
    notebook.metadata["kernelspec"] = {
        "name": "python3", "display_name": "Python 3", "language": "python",
    }  # fmt: skip
    with TemporaryDirectory() as sockets, TemporaryDirectory() as folder:
        client = NotebookClient(
            notebook,
            kernel_manager_class=ThisKernel,
            config=Config(ThisKernel={"ip": f"{sockets}/kernel"}),
            resources={"metadata": {"path": folder}},
            timeout=600,
            coalesce_streams=True,
        )
        try:
            return client.execute()
        except CellExecutionError as error:
            said = COLOURS.sub("", str(error))
            raise PluginError(f"The tutorial {name} fails.\n{said}") from error


def add_output(page, cell, output):
    """Add what a cell printed, showed or drew."""
    if output.output_type == "stream":
        if output.name == "stderr":
            if is_shell(cell):  # a command's progress; its exit code has been looked at
                return
            raise PluginError(f"The tutorial {page.name} warns:\n{output.text}\n{cell.source}")
        page.markdown.append(as_html(f"<pre>{escape(COLOURS.sub('', output.text))}</pre>"))
        return
    shown = output.data
    if "image/png" in shown:
        if "alt" not in cell.metadata:
            raise PluginError(f'{page.name}: a figure has no `# %% alt="…"`:\n{cell.source}')
        picture = f"{page.name}-{len(page.pictures) + 1}.png"
        page.pictures[picture] = b64decode(shown["image/png"])
        page.markdown.append(f"![{cell.metadata['alt']}]({picture})")
    else:
        page.markdown.append(
            as_html(shown.get("text/html") or f"<pre>{escape(shown['text/plain'])}</pre>")
        )


def is_shell(cell):
    """Whether the cell is commands for a shell (`# %% language="bash"`)."""
    return cell.source.startswith(SHELL)


def as_html(html):
    """A block that Markdown leaves as it is."""
    return f'<div class="output">\n{html}\n</div>'
