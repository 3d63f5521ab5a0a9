"""A headless Chromium."""

import shutil
from types import SimpleNamespace

import pytest

ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@pytest.fixture(scope="session")
def chromium():
    """Debian's Chromium, without a window."""
    playwright = pytest.importorskip(
        "playwright.sync_api", reason="playwright is not installed: pip install -e '.[dev]'"
    )
    path = shutil.which("chromium") or shutil.which("chromium-browser")
    if path is None:
        pytest.skip("no chromium on this machine (Debian: apt-get install chromium)")
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=path, args=ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture
def open_page(chromium, tmp_path):
    """HTML -> a tab that shows it, and what happened there: requests, console, dialogs."""
    contexts = []

    def show(html, *, width=1200, **options):
        context = chromium.new_context(viewport={"width": width, "height": 900}, **options)
        context.set_default_timeout(3000)
        contexts.append(context)
        tab = context.new_page()
        seen = SimpleNamespace(requests=[], errors=[])
        tab.on("request", lambda r: seen.requests.append(r.url))
        tab.on("console", lambda m: seen.errors.append(m.text) if m.type == "error" else None)
        tab.on("pageerror", lambda error: seen.errors.append(str(error)))
        file = tmp_path / f"page{len(contexts)}.html"
        file.write_text(html, encoding="utf-8")
        tab.goto(file.as_uri())
        seen.outside = lambda: [
            url for url in seen.requests if url != file.as_uri() and not url.startswith("data:")
        ]
        return tab, seen

    yield show
    for context in contexts:
        context.close()
