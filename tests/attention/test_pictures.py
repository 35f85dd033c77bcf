"""Maps drawn over images."""

import warnings

import numpy as np
import pytest
from PIL import Image

from blip2ft.attention.look import Look
from blip2ft.attention.pictures import (
    DIAGNOSTIC,
    draw_attention,
    draw_layers,
    draw_queries,
    draw_text,
    overlay,
    sheet,
)

YELLOW, BLUE = (253, 231, 37), (68, 1, 84)  # the ends of viridis


def seen_of(size: tuple[int, int] = (90, 60), **rest) -> Look:
    """Two layers, three heads, five queries and a grid of 4 x 4, of a grey image."""
    attention = np.random.default_rng(0).random((2, 3, 5, 4, 4), dtype=np.float32) / 16
    return Look(Image.new("RGB", size, (128, 128, 128)), attention, (0, 2), **rest)


def blended(colour: tuple[int, int, int], grey: int = 128) -> np.ndarray:
    return 0.4 * grey + 0.6 * np.array(colour)


@pytest.mark.parametrize("size", [(80, 40), (40, 80), (37, 41), (3, 500), (1, 1)])
def test_a_map_is_stretched_over_an_image_of_any_shape(size):
    heat = np.zeros((4, 4))
    heat[0, 3] = 0.5
    drawn = overlay(Image.new("RGB", size, (128, 128, 128)), heat)
    assert drawn.size == size
    pixels = np.asarray(drawn, dtype=float)
    if min(size) >= 4:
        np.testing.assert_allclose(pixels[0, -1], blended(YELLOW), atol=2)
        for row, column in ((0, 0), (-1, 0), (-1, -1)):
            np.testing.assert_allclose(pixels[row, column], blended(BLUE), atol=2)


def test_colours_reach_to_the_top_that_is_given():
    image = Image.new("RGB", (8, 8), (128, 128, 128))
    even = np.full((2, 2), 0.3)
    for top, colour in ((None, YELLOW), (0.3, YELLOW), (0.1, YELLOW), (1e9, BLUE)):
        drawn = np.asarray(overlay(image, even, top=top), dtype=float)
        np.testing.assert_allclose(drawn[4, 4], blended(colour), atol=2)
    nothing = np.asarray(overlay(image, np.zeros((2, 2))), dtype=float)
    np.testing.assert_allclose(nothing[4, 4], blended(BLUE), atol=2)


def test_what_is_no_map_is_refused():
    image = Image.new("RGB", (8, 8))
    for heat in (np.zeros(4), np.zeros((1, 2, 2)), np.zeros((0, 2))):
        with pytest.raises(ValueError, match="two-dimensional"):
            overlay(image, heat)
    for value in (np.nan, np.inf, -1):
        with pytest.raises(ValueError, match="finite numbers from 0 on"):
            overlay(image, np.full((2, 2), value))


@pytest.mark.parametrize("size", [(90, 60), (600, 20), (20, 600), (1, 1)])
def test_sheets_of_images_of_any_shape_hold_all_their_cells(size):
    weighed = seen_of().attention
    seen = seen_of(size, text="a dog", score=0.25, scored="chance", weighed=weighed)
    for draw in (draw_attention, draw_text, draw_queries, draw_layers):
        drawn = draw(seen)
        assert drawn.mode == "RGB"
        assert np.asarray(drawn).std() > 0


def test_cells_lie_row_by_row_as_they_are_named():
    colours = [(200, 0, 0), (0, 200, 0), (0, 0, 200)]
    cells = [(f"cell {n}", Image.new("RGB", (60, 40), c)) for n, c in enumerate(colours)]
    drawn = np.asarray(sheet(cells, 2, 1.0, "unit", "about"))
    centres = []
    for colour in colours:
        rows, columns = np.nonzero((drawn == colour).all(-1))
        assert len(rows) == 60 * 40  # none is covered or cut
        centres.append((rows.mean(), columns.mean()))
    first, second, third = centres
    assert first[0] == second[0] < third[0]
    assert first[1] == third[1] < second[1]


def test_hostile_texts_are_written_without_a_warning():
    texts = ["$x^{2$", "\\frac", "犬が走る 🐕", "a\nb\tc", "w" * 5000, "100 % <script>"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        heights = [draw_attention(seen_of(text=text)).height for text in texts]
    assert max(heights) < 1.5 * min(heights)  # long ones are cut


def test_a_weighed_text_is_called_a_diagnostic(monkeypatch):
    said = []
    monkeypatch.setattr(
        "blip2ft.attention.pictures.sheet", lambda *given: said.append(given[-1]) or given[0]
    )
    seen = seen_of(text="a  dog", score=0.25, scored="chance", weighed=seen_of().attention)
    draw_text(seen)
    assert said == [f'What speaks for the text: "a dog" (chance 0.25)\n{DIAGNOSTIC}']
    with pytest.raises(ValueError, match="no text was weighed"):
        draw_text(seen_of(text="a dog"))


def test_layers_and_queries_are_named_and_drawn_from_their_own_maps(monkeypatch):
    sheets = []
    monkeypatch.setattr(
        "blip2ft.attention.pictures.sheet", lambda cells, *rest: sheets.append((cells, rest))
    )
    seen = seen_of()
    draw_layers(seen)
    draw_queries(seen)
    (layers, (columns, *_)), (queries, _) = sheets
    assert columns == 3
    names = [name.split(":")[0] for name, _ in layers]
    assert names == [f"layer {layer} head {head}" for layer in (0, 2) for head in range(3)]
    assert [name.split(":")[0] for name, _ in queries] == [f"query {n}" for n in range(5)]
    heat = seen.attention.mean(2)[1, 2]
    assert layers[5][0].endswith(f": {heat.max() * 16:.1f}x")
    assert (
        layers[5][1].tobytes() == overlay(Image.new("RGB", (120, 80), (128,) * 3), heat).tobytes()
    )
    heat = seen.attention[:, :, 4].mean((0, 1))
    assert (
        queries[4][1].tobytes()
        == overlay(Image.new("RGB", queries[4][1].size, (128,) * 3), heat).tobytes()
    )
