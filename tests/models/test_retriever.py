"""The three objectives: equal to plain passes on any batch, and stock loads the rest."""

import pytest
import torch
from plain import image_features, losses, match, text_features, turn_off_dropout
from transformers import Blip2ForImageTextRetrieval

from blip2ft.data.pairs import pair_layout
from blip2ft.gather import Shares, share_batch
from blip2ft.models.in_batch import contrastive_loss, draw_negatives, same_image
from blip2ft.models.load import load_retriever
from blip2ft.models.parts import checkpoint_gradients
from blip2ft.models.qformer import bidirectional_mask, multimodal_causal_mask, project_images

TEXTS = ["a red cat", "the dog and a bird on the apple", "a car", "a blue bird of the left"]


@pytest.fixture
def model(retriever_folder):
    model, _ = load_retriever(retriever_folder)
    return model


@pytest.fixture
def layout(retriever_folder):
    return pair_layout(*load_retriever(retriever_folder), 16)


def batch_of(layout, count=4, image_ids=None):
    """Pixels, ids, mask and image ids of `count` pairs."""
    generator = torch.Generator().manual_seed(1)
    pixels = torch.randn(count, 3, 28, 28, generator=generator)
    ids, mask = layout.pad(layout.ids(TEXTS[:count]))
    numbers = torch.arange(count) if image_ids is None else torch.tensor(image_ids)
    return pixels, ids, mask, numbers


def plain_losses(model, pixels, ids, mask, image_ids, seed=7):
    """The same with one stock call a pass, texts padded further."""
    ids = torch.nn.functional.pad(ids, (0, 5))
    mask = torch.nn.functional.pad(mask, (0, 5))
    embeds = model.vision_model(pixels).last_hidden_state
    with torch.no_grad():
        similarity = torch.einsum(
            "iqd,td->iqt", image_features(model, embeds), text_features(model, ids, mask)
        )
        logits = similarity.max(1).values / model.temperature
    torch.manual_seed(seed)
    shares = share_batch(len(ids), ids.shape[1], ids.device)
    same = same_image(shares, image_ids, ids.device)
    negatives = draw_negatives(shares, same, logits, logits.T)
    return losses(model, embeds, ids, mask, image_ids, negatives)


def gradients(model):
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def largest_difference(ours, theirs):
    """Of gradients, relative to the largest of each parameter; keys' biases have none but noise."""
    assert ours.keys() == theirs.keys()
    largest = max(float(t.abs().max()) for t in theirs.values())
    return max(
        float((ours[n] - theirs[n]).abs().max() / max(theirs[n].abs().max(), 1e-4 * largest))
        for n in ours
    )


@pytest.mark.parametrize("image_ids", [None, [3, 3, 8, 9]])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_losses_and_gradients_equal_plain_passes(model, layout, image_ids, checkpointing):
    pixels, ids, mask, numbers = batch_of(layout, image_ids=image_ids)
    pixels = pixels.double()  # where fp32 rounds, a wrong gradient could hide
    turn_off_dropout(model.double().train())
    theirs = plain_losses(model, pixels, ids, mask, numbers)
    sum(theirs.values()).backward()
    expected = gradients(model)
    model.zero_grad()
    if checkpointing:
        checkpoint_gradients(model, ["vision", "qformer"])
    torch.manual_seed(7)
    output = model(pixels, ids, mask, numbers)
    for name, value in theirs.items():
        assert output[name].item() == pytest.approx(value.item(), abs=1e-5)
    assert output.loss.item() == pytest.approx(sum(theirs.values()).item(), abs=1e-5)
    output.loss.backward()
    assert largest_difference(gradients(model), expected) < 1e-5


def test_bf16_autocast_stays_near_plain_passes_under_autocast(model, layout):
    pixels, ids, mask, numbers = batch_of(layout)
    turn_off_dropout(model.train())
    with torch.autocast("cpu", torch.bfloat16):
        theirs = plain_losses(model, pixels, ids, mask, numbers)
        torch.manual_seed(7)
        output = model(pixels, ids, mask, numbers)
    assert output.itg.item() == pytest.approx(theirs["itg"].item(), rel=2e-2)
    assert output.itm.item() == pytest.approx(theirs["itm"].item(), rel=2e-2)
    output.loss.backward()
    assert all(torch.isfinite(g).all() for g in gradients(model).values())


def test_without_image_ids_all_images_differ(model, layout):
    pixels, ids, mask, numbers = batch_of(layout)
    torch.manual_seed(0)
    one = model(pixels, ids, mask)
    torch.manual_seed(0)
    other = model(pixels, ids, mask, numbers)
    assert torch.equal(one.loss, other.loss)


def test_a_batch_of_one_has_finite_losses_and_no_negatives(model, layout):
    pixels, ids, mask, _ = batch_of(layout, 1)
    output = model(pixels, ids, mask)
    assert output.itc.item() == pytest.approx(0, abs=1e-6)
    embeds = model.vision_model(pixels).last_hidden_state
    logits = match(model, embeds, ids, mask)
    alone = torch.nn.functional.cross_entropy(logits, torch.tensor([1]))
    assert output.itm.item() == pytest.approx(alone.item(), abs=1e-5)


def test_pairs_of_one_image_only_have_no_negatives(model, layout):
    pixels, ids, mask, _ = batch_of(layout, 3)
    output = model(pixels, ids, mask, torch.zeros(3, dtype=torch.long))
    assert torch.isfinite(output.loss)


def test_an_objective_left_out_is_not_computed(model, layout):
    pixels, ids, mask, numbers = batch_of(layout)
    model.objectives = {"itc": 2.0, "itg": 0.0}
    output = model(pixels, ids, mask, numbers)
    assert output.itm is None
    assert output.itg is None
    assert torch.equal(output.loss, 2 * output.itc)


@pytest.mark.parametrize(
    "objectives", [["itc"], ["itm"], ["itg"], ["itc", "itm"], ["itm", "itg"], ["itc", "itm", "itg"]]
)
def test_what_no_objective_uses_is_known(model, layout, objectives):
    """DDP would wait for the gradients."""
    pixels, ids, mask, numbers = batch_of(layout)
    model.objectives = dict.fromkeys(objectives, 1.0)
    model(pixels, ids, mask, numbers).loss.backward()
    unused = {name for name, _ in model.unused_parameters()}
    assert unused == {n for n, p in model.named_parameters() if p.grad is None}


def test_queries_of_the_generating_pass_equal_those_alone(model, layout):
    pixels, ids, mask, numbers = batch_of(layout)
    embeds = model.vision_model(pixels).last_hidden_state
    with_text = model(pixels, ids, mask, numbers).image_features
    torch.testing.assert_close(with_text, image_features(model, embeds), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(
        model.encode_images(project_images(model.qformer, embeds)), with_text, atol=1e-5, rtol=1e-5
    )


def test_one_image_against_many_texts_equals_one_at_a_time(model, layout):
    pixels, ids, mask, _ = batch_of(layout)
    embeds = model.vision_model(pixels[:1]).last_hidden_state
    together = model.match([(project_images(model.qformer, embeds), len(ids))], ids, mask)
    rows = [ids[i : i + 1, : int(mask[i].sum())] for i in range(len(ids))]
    alone = [match(model, embeds, row, torch.ones_like(row)) for row in rows]
    torch.testing.assert_close(together, torch.cat(alone), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_masks_hold_under_every_attention(model, layout, attention):
    pixels, ids, mask, numbers = batch_of(layout)
    expected = model(pixels, ids, mask, numbers).itg
    model.set_attn_implementation(attention)
    torch.testing.assert_close(model(pixels, ids, mask, numbers).itg, expected)


def test_the_stock_forward_still_answers(model, layout):
    pixels, ids, mask, _ = batch_of(layout)
    stock = model(pixels, ids, mask, use_image_text_matching_head=True).logits_per_image
    embeds = model.vision_model(pixels).last_hidden_state
    torch.testing.assert_close(stock, match(model, embeds, ids, mask))


def test_without_a_start_token_itg_is_refused(model, layout):
    pixels, ids, mask, numbers = batch_of(layout)
    model.config.qformer_config.bos_token_id = None
    with pytest.raises(ValueError, match=r"ITG needs a start token.*\[DEC\]"):
        model(pixels, ids, mask, numbers)


def test_masks_are_as_drawn():
    visible = multimodal_causal_mask(torch.tensor([[1, 1, 0]]), 2, torch.float32)[0, 0] == 0
    drawn = ["xx...", "xx...", "xxx..", "xxxx.", "xxxx."]
    assert ["".join(".x"[int(v)] for v in row) for row in visible] == drawn
    row = bidirectional_mask(torch.tensor([[1, 1, 0]]), 2, torch.float32)[0, 0, 0]
    assert (row == 0).tolist() == [True, True, True, True, False]


def test_negatives_are_drawn_in_proportion_to_their_similarity():
    logits = torch.tensor([[9.0, 0.0, 1.0, 2.0]]).repeat(4, 1)
    same = torch.eye(4, dtype=torch.bool)
    drawn = [
        int(draw_negatives(Shares((4,), 0, 1, seed), same, logits, logits).texts[0])
        for seed in range(4000)
    ]
    shares = torch.bincount(torch.tensor(drawn), minlength=4) / len(drawn)
    expected = torch.tensor([0.0, *torch.softmax(torch.tensor([0.0, 1.0, 2.0]), 0)])
    torch.testing.assert_close(shares, expected, atol=0.03, rtol=0)


def test_negatives_never_show_the_same_image():
    same = same_image(Shares((4,), 0, 1, 0), torch.tensor([1, 1, 2, 2]), torch.device("cpu"))
    for seed in range(50):
        drawn = draw_negatives(Shares((4,), 0, 1, seed), same, torch.eye(4), torch.eye(4))
        assert not same[torch.arange(4), drawn.texts].any()
        assert not same[torch.arange(4), drawn.images].any()


def test_targets_are_spread_over_all_pairs_of_an_image():
    logits = torch.randn(3, 3)
    same = torch.tensor([[1, 1, 0], [1, 1, 0], [0, 0, 1]]).bool()
    ours = contrastive_loss(Shares((3,), 0, 1, 0), same, logits, logits.T)
    even = torch.tensor([[0.45, 0.45, 0], [0.45, 0.45, 0], [0, 0, 0.9]]) + 0.1 / 3
    expected = -(even * logits.log_softmax(1)).sum(1).mean()
    expected = (expected - (even * logits.T.log_softmax(1)).sum(1).mean()) / 2
    torch.testing.assert_close(ours, expected)


def test_saved_and_loaded_it_is_the_same_and_stock_takes_its_part(model, layout, tmp_path):
    torch.nn.init.constant_(model.temperature, 0.05)
    torch.nn.init.normal_(model.itg_head.bias)
    model.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path)
    for name, parameter in model.state_dict().items():
        assert torch.equal(parameter, again.state_dict()[name]), name
    stock, info = Blip2ForImageTextRetrieval.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"]
    assert stock.config.architectures == ["Blip2ForImageTextRetrieval"]
    pixels, ids, mask, _ = batch_of(layout)
    wanted = {"use_image_text_matching_head": True}
    torch.testing.assert_close(
        stock(pixels, ids, mask, **wanted).logits_per_image,
        model(pixels, ids, mask, **wanted).logits_per_image,
    )


def test_no_images_have_keys_too(model):
    """As where no process drew another's image for a negative."""
    none = project_images(model.qformer, torch.zeros(0, 5, 32))
    some = project_images(model.qformer, torch.ones(2, 5, 32))
    for joined, own in zip(some.join(none).layers, some.layers, strict=True):
        assert own is None or all(map(torch.equal, joined, own))
