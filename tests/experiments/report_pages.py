"""What every command's page must be: whole, alone, and with the command that made it."""

import json
from html.parser import HTMLParser


class Seen(HTMLParser):
    """Tags, words, and what attributes fetch."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.fetched, self.words = [], [], []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.fetched += [value for name, value in attrs if name in ("src", "href")]

    def handle_data(self, data):
        self.words.append(data)


def read_page(folder):
    """A run's page, parsed; asserts what holds for every one.

    The page has one script, fetches nothing, and shows the command of provenance.json.
    """
    html = (folder / "report.html").read_text(encoding="utf-8")
    seen = Seen(html)
    assert seen.tags.count("script") == html.count("<script") == 1
    assert seen.tags.count("html") == seen.tags.count("h1") == 1
    assert html.rstrip().endswith("</html>")
    assert all(address.startswith("data:") for address in seen.fetched)
    command = json.loads((folder / "provenance.json").read_text())["command"]
    assert command in seen.words
    return seen
