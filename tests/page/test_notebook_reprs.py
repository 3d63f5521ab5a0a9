"""What a notebook's cell shows of scenes and results."""

from dataclasses import dataclass
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest
import torch

from actlens.notebook import DrawnAsTable, DrawnAsTables
from actlens.scene import Scene, ScenePair


class Cells(HTMLParser):
    """The texts of a fragment's tags."""

    def __init__(self, html):
        super().__init__()
        self.texts, self.tags = [], []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        if data.strip():
            self.texts.append(data.strip())


@dataclass(frozen=True)
class Found(DrawnAsTable):
    n: int = 40

    def frame(self):
        share = np.linspace(0, 1, self.n)
        return pd.DataFrame(
            {"part": [f"<b>{i}</b>" for i in range(self.n)], "share": share,
             "share_low": share - 0.1, "share_high": share + 0.1}
        )  # fmt: skip


@dataclass(frozen=True)
class FoundMore(DrawnAsTables):
    def frames(self):
        return {"first": Found(2).frame(), "second": Found(1).frame()}


def scene(red=255):
    picture = torch.zeros(3, 8, 6, dtype=torch.uint8)
    picture[0] = red
    return Scene(
        {"observation.images.top": picture, "observation.state": torch.zeros(6)},
        episode=3, frame=7, labels={"cube_x": 0.125}, source="<script>x</script>",
    )  # fmt: skip


def test_a_result_is_shown_as_its_table_with_intervals_beside_figures():
    cells = Cells(Found()._repr_html_())
    assert "0.000 (-0.100…0.100)" in cells.texts
    assert "<b>0</b>" in cells.texts  # text, no markup
    assert not [tag for tag, _ in cells.tags if tag in {"b", "script"}]
    assert any("The first 25 of 40 rows" in text for text in cells.texts)


def test_several_tables_are_shown_under_their_names():
    texts = Cells(FoundMore()._repr_html_()).texts
    assert any("first" in text for text in texts)
    assert any("second" in text for text in texts)


def test_a_scene_shows_what_the_cameras_see_and_its_labels():
    cells = Cells(scene()._repr_html_())
    (image,) = [attributes for tag, attributes in cells.tags if tag == "img"]
    assert image["src"].startswith("data:image/jpeg;base64,")
    assert any("cube_x 0.125" in text for text in cells.texts)
    assert not [tag for tag, _ in cells.tags if tag == "script"]


def test_a_pair_shows_both_scenes():
    cells = Cells(ScenePair(scene(), scene(0), "the cube's position")._repr_html_())
    assert len([tag for tag, _ in cells.tags if tag == "img"]) == 2
    assert any("the cube's position" in text for text in cells.texts)


@pytest.mark.parametrize("batched", [False, True])
def test_a_picture_is_the_observations_pixels(batched):
    shown = scene().observation["observation.images.top"]
    floats = Scene({"observation.images.top": (shown[None] if batched else shown) / 255})
    assert (floats.picture("observation.images.top")[..., 0] == 255).all()
    assert (floats.picture("observation.images.top")[..., 1:] == 0).all()
