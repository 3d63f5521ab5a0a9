"""What a player is given, and what is left where writing stops."""

import av
import numpy as np
import pytest

from actlens.report.film_file import film_file

PICTURES = [np.full((48, 64, 3), level, np.uint8) for level in (20, 90, 160, 230)]


def written(path, pictures=PICTURES, fps=12.5):
    with film_file(path, fps=fps) as write:
        for picture in pictures:
            write(picture)


def stopping(pictures, problem):
    yield from pictures
    raise problem


def test_a_film_decodes_to_its_pictures(tmp_path):
    written(tmp_path / "new" / "film.mp4")
    with av.open(str(tmp_path / "new" / "film.mp4")) as container:
        stream = container.streams.video[0]
        frames = list(container.decode(video=0))
        assert stream.codec_context.name == "h264"
        assert stream.codec_context.pix_fmt == "yuv420p"
        assert stream.average_rate == 12.5
    assert [frame.time for frame in frames] == pytest.approx([0, 0.08, 0.16, 0.24])
    for frame, picture in zip(frames, PICTURES, strict=True):
        shown = frame.to_ndarray(format="rgb24").astype(int)
        assert shown.shape == picture.shape
        assert np.abs(shown - picture).max() <= 4


def test_the_index_comes_first_so_that_it_plays_while_it_loads(tmp_path):
    written(tmp_path / "film.mp4")
    content = (tmp_path / "film.mp4").read_bytes()
    assert content[4:8] == b"ftyp"
    assert 0 < content.index(b"moov") < content.index(b"mdat")


def test_the_same_pictures_are_the_same_bytes(tmp_path):
    for name in ("one.mp4", "two.mp4"):
        written(tmp_path / name)
    assert (tmp_path / "one.mp4").read_bytes() == (tmp_path / "two.mp4").read_bytes()


@pytest.mark.parametrize("problem", [KeyboardInterrupt, ValueError, SystemExit])
@pytest.mark.parametrize("after", [0, 1, 3])
def test_whatever_stops_it_nothing_is_left(problem, after, tmp_path):
    with pytest.raises(problem):
        written(tmp_path / "film.mp4", stopping(PICTURES[:after], problem))
    assert list(tmp_path.iterdir()) == []


def test_an_earlier_film_stays_until_the_new_one_is_whole(tmp_path):
    path = tmp_path / "film.mp4"
    path.write_bytes(b"earlier")
    with pytest.raises(KeyboardInterrupt):
        written(path, stopping(PICTURES[:1], KeyboardInterrupt))
    assert path.read_bytes() == b"earlier"
    written(path)
    assert path.read_bytes() != b"earlier"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("pictures", "message"),
    [
        ([np.zeros((47, 64, 3), np.uint8)], "even both ways; this one is 47x64"),
        ([PICTURES[0], np.zeros((48, 32, 3), np.uint8)], "48x32, the film 48x64"),
        ([], "at least one picture"),
    ],
    ids=["odd", "other_size", "none"],
)
def test_pictures_that_make_no_film_are_refused(pictures, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        written(tmp_path / "film.mp4", pictures)
    assert list(tmp_path.iterdir()) == []
