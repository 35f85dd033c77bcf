"""What the page asks of a model, and what it tells where that can't be answered."""

import shutil
import threading
import time

import pytest

from blip2ft.demo import answering as module
from blip2ft.demo.answering import BASE, Answering, decoding_of
from blip2ft.finetuned import load_mixed
from blip2ft.models.load import load_captioner, load_retriever
from blip2ft.models.vqa import load_vqa

SHORT = decoding_of(1, 4, 1.0, 0)


@pytest.fixture
def answering(run_folder) -> Answering:
    adapters, processor, description = load_mixed({str(run_folder): 1.0})
    runs = {"birds": str(run_folder)}
    return Answering("tiny", adapters.model, processor, {"birds": description}, adapters, runs)


@pytest.fixture
def photo(photo_folder):
    return str(photo_folder / "photo0.jpg")


def test_an_adapter_is_switched_for_one_answer(answering, photo):
    tuned = answering.caption(photo, "the photo of", "birds", **SHORT)
    base = answering.caption(photo, "the photo of", BASE, **SHORT)
    assert answering.choices == ["birds", BASE]
    assert tuned.output != base.output
    assert tuned == answering.caption(photo, "the photo of", "birds", **SHORT)
    assert (tuned.task, tuned.adapter, tuned.decoding) == ("caption", "birds", SHORT)


def test_each_adapter_brings_its_prompt_and_decoding(answering):
    assert answering.prompt("birds") == "the photo of"
    assert answering.prompt(BASE) == answering.prompt(None) == "a photo of"
    assert answering.decoding("birds")["num_beams"] == 2
    assert answering.decoding(BASE) == {}
    assert answering.template("birds") == "Question: {} Answer:"
    asks = Answering("asks", None, None, {None: {"prompt": "Q: {} A:"}})
    assert (asks.prompt(None), asks.template(None)) == ("a photo of", "Q: {} A:")


def test_a_question_needs_words_and_every_request_a_picture(answering, photo):
    with pytest.raises(ValueError, match="There is no question yet; write one"):
        answering.ask(photo, " ", None)
    for request in (answering.caption, answering.ask, answering.attend):
        with pytest.raises(ValueError, match="There is no picture yet; choose one"):
            request(None, "what?", None)
        with pytest.raises(ValueError, match="has 2,001 characters; up to 2,000 are taken"):
            request(photo, "a" * 2001, None)


def test_more_tokens_than_positions_are_told_before_they_fail(answering, photo):
    told = r"The text has \d+ tokens. With 4 of the picture and up to 90 of the answer these are"
    long = decoding_of(1, 90, 1.0, 0)
    for request in (answering.caption, answering.ask):
        with pytest.raises(ValueError, match=told):
            request(photo, "a red apple on the left of a blue bird", None, **long)
        request(photo, "a red", None, **SHORT)


def test_an_encoder_decoder_has_room_for_any_number(t5_folder, photo):
    model, processor = load_captioner(t5_folder)
    answering = Answering("t5", model.eval(), processor)
    answering.caption(photo, "a red apple " * 40, None, **SHORT)


def test_a_temperature_draws_instead_of_searching(answering, photo):
    assert SHORT == {"num_beams": 1, "max_new_tokens": 4, "length_penalty": 1.0}
    assert decoding_of(1, 4, 1.0, 0.01) == SHORT
    hot = decoding_of(5, 20, 1.5, 2.0)
    assert (hot["num_beams"], hot["do_sample"], hot["temperature"]) == (1, True, 2.0)
    drawn = {answering.caption(photo, "the photo of", None, **hot).output for _ in range(4)}
    assert len(drawn) > 1


@pytest.mark.parametrize(
    ("numbers", "told"),
    [
        ((11, 4, 1.0, 0), "Beams is 11; it goes from 1 to 10"),
        ((1, 0, 1.0, 0), "Longest is 0; it goes from 1 to 200"),
        ((1, 4, float("nan"), 0), "Length penalty is nan; it goes from -2 to 2"),
        ((1, 4, 1.0, "hot"), "Temperature is hot; it goes from 0 to 2"),
    ],
)
def test_numbers_that_no_slider_has_are_refused(numbers, told):
    with pytest.raises(ValueError, match=told):
        decoding_of(*numbers)


def test_an_answer_that_is_being_written_ends_when_the_page_does(answering, photo, monkeypatch):
    steps = []

    def endless(model, processor, images, *, prompt, stopping_criteria, **decoding):
        (stopping,) = stopping_criteria
        while not stopping(None, None):
            steps.append(1)
            time.sleep(0.01)
        return [""]

    monkeypatch.setattr(module, "caption", endless)
    work = threading.Thread(target=answering.caption, args=(photo, "a photo of", None))
    work.start()
    while not steps:
        time.sleep(0.01)
    answering.stopping.set()
    work.join(timeout=10)
    assert not work.is_alive()


def test_generation_asks_whether_to_stop(answering, photo):
    answering.stopping.set()
    stopped = answering.caption(photo, "the photo of", None, **decoding_of(3, 60, 1.0, 0))
    answering.stopping.clear()
    whole = answering.caption(photo, "the photo of", None, **decoding_of(3, 60, 1.0, 0))
    assert len(stopped.output) < len(whole.output)


def test_a_retriever_writes_nothing_but_shows_where_it_looks(retriever_folder, photo):
    model, processor = load_retriever(retriever_folder, objectives={"itc": 1.0, "itm": 1.0})
    answering = Answering("finder", model.eval(), processor)
    ((everywhere, _), (_, words)), told = answering.attend(photo, "a red apple", None)
    assert not answering.writes
    assert everywhere.size == (48, 40)
    assert words == "for: a red apple"
    assert told.startswith("“a red apple”: probability of a match 0.")
    ((_, only),), nothing = answering.attend(photo, " ", None)
    assert (only, nothing) == ("in general", "")


def test_a_model_that_reads_questions_is_asked_for_one(opt_folder, retriever_folder, photo):
    model, processor = load_vqa(opt_folder, stage1=retriever_folder)
    answering = Answering("asks", model.eval(), processor)
    assert answering.reads_questions
    with pytest.raises(ValueError, match="There is no question yet; write one: the model looks"):
        answering.attend(photo, "", None)
    assert len(answering.attend(photo, "a red apple on the left", None)[0]) == 1


def test_pictures_are_told_without_their_place(answering, tmp_path, photo):
    shutil.copy(__file__, tmp_path / "code.png")
    with pytest.raises(ValueError, match=r"^code\.png: not an image that can be read"):
        answering.caption(str(tmp_path / "code.png"), "a photo of", None)
