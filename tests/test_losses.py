"""The language-modelling loss against PyTorch's own, token by token."""

import pytest
import torch
from loss_memory import peak_memory
from torch import Tensor
from torch.nn import functional

from blip2ft.losses import (
    contrastive,
    language_modeling,
    linear_language_modeling,
    matching,
    similarities,
    text_generation,
)


def random_batch(rows: int = 8) -> tuple[Tensor, Tensor]:
    """Logits (B, 6, 11) and labels (B, 6), labelled from a different token on in every row."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(rows, 6, 11, generator=generator)
    labels = torch.randint(0, 11, (rows, 6), generator=generator)
    for row in range(rows):
        labels[row, : 1 + row % 5] = -100
    return logits, labels


@pytest.mark.parametrize("shift", [True, False])
def test_the_sum_is_the_mean_times_the_number_of_labels(shift):
    logits, labels = random_batch()
    ours = language_modeling(logits, labels, shift=shift)
    if shift:
        logits, labels = logits[:, :-1], labels[:, 1:]
    mean = functional.cross_entropy(logits.flatten(0, 1), labels.flatten())
    count = (labels != -100).sum()
    assert ours.shape == ()
    torch.testing.assert_close(ours, mean * count)


def test_shifted_logits_predict_the_next_token():
    labels = torch.tensor([[-100, 3, 5, 7]])
    logits = torch.full((1, 4, 9), -50.0)
    for place, token in enumerate([3, 5, 7]):
        logits[0, place, token] = 50.0
    assert float(language_modeling(logits, labels, shift=True)) == pytest.approx(0, abs=1e-6)
    assert float(language_modeling(logits, labels, shift=False)) > 100


@pytest.mark.parametrize("shift", [True, False])
def test_eight_at_once_equal_two_times_four(shift):
    logits, labels = random_batch()
    logits.requires_grad_()
    whole = language_modeling(logits, labels, shift=shift)
    (expected,) = torch.autograd.grad(whole, logits)
    halves = [
        language_modeling(logits[part], labels[part], shift=shift)
        for part in (slice(0, 4), slice(4, 8))
    ]
    (gradient,) = torch.autograd.grad(sum(halves), logits)
    torch.testing.assert_close(sum(halves), whole)
    torch.testing.assert_close(gradient, expected)


@pytest.mark.parametrize("shift", [True, False])
def test_a_row_counts_the_same_alone_and_with_padding(shift):
    logits, labels = random_batch(1)
    padded_logits = functional.pad(logits, (0, 0, 0, 3), value=7.0)
    padded_labels = functional.pad(labels, (0, 3), value=-100)
    alone = language_modeling(logits, labels, shift=shift)
    torch.testing.assert_close(
        language_modeling(padded_logits, padded_labels, shift=shift), alone, rtol=0, atol=0
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_logits_are_computed_in_fp32(dtype):
    logits, labels = random_batch(64)
    logits = (logits * 2000).to(dtype)  # the sum is over fp16's 65504
    ours = language_modeling(logits, labels, shift=True)
    assert ours.dtype == torch.float32
    assert float(ours) > 65504
    torch.testing.assert_close(ours, language_modeling(logits.float(), labels, shift=True))


@pytest.mark.parametrize("shift", [True, False])
def test_no_label_at_all_gives_zero_and_no_gradient(shift):
    logits, labels = random_batch()
    logits.requires_grad_()
    loss = language_modeling(logits, torch.full_like(labels, -100), shift=shift)
    loss.backward()
    assert float(loss.detach()) == 0
    assert not logits.grad.any()


def test_unlabelled_tokens_get_no_gradient():
    logits, labels = random_batch()
    logits.requires_grad_()
    language_modeling(logits, labels, shift=True).backward()
    learned = torch.zeros_like(labels, dtype=torch.bool)
    learned[:, :-1] = labels[:, 1:] != -100
    assert torch.equal(logits.grad.any(-1), learned)


def test_another_ignore_index_is_left_out():
    logits, labels = random_batch()
    expected = language_modeling(logits, labels, shift=True)
    labels[labels == -100] = 0
    labels = torch.where(random_batch()[1] == -100, -1, labels)
    torch.testing.assert_close(
        language_modeling(logits, labels, shift=True, ignore_index=-1), expected
    )


def of_both(states, weight, bias, labels, weights=None, *, shift, rows_at_once=5):
    """Loss and gradients, without logits and by way of all of them."""
    leaves = [tensor for tensor in (states, weight, bias) if tensor is not None]
    sums = (
        linear_language_modeling(
            states, weight, bias, labels, shift=shift, weights=weights, rows_at_once=rows_at_once
        ),
        language_modeling(
            functional.linear(states, weight, bias), labels, shift=shift, weights=weights
        ),
    )
    return [(total.detach(), *torch.autograd.grad(total, leaves)) for total in sums]


@pytest.mark.parametrize("shift", [True, False])
@pytest.mark.parametrize("weighted", [True, False])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("rows", [1, 8])
def test_loss_and_gradients_without_logits_equal_those_with(shift, weighted, bias, rows):
    generator = torch.Generator().manual_seed(1)
    labels = random_batch(rows)[1]
    states = torch.randn(rows, 6, 7, generator=generator).requires_grad_()
    weight = torch.randn(11, 7, generator=generator).requires_grad_()
    shifts = torch.randn(11, generator=generator).requires_grad_() if bias else None
    weights = torch.rand(rows, generator=generator) if weighted else None
    ours, expected = of_both(states, weight, shifts, labels, weights, shift=shift)
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "labelled",
    [
        pytest.param(torch.ones(3, 4).bool(), id="all"),
        pytest.param(torch.arange(12).reshape(3, 4) == 6, id="one"),
        pytest.param(torch.zeros(3, 4).bool(), id="none"),
    ],
)
@pytest.mark.parametrize("rows_at_once", [1, 4, 12, 100])
def test_any_number_of_labels_in_any_chunks_equals_all_logits(labelled, rows_at_once):
    generator = torch.Generator().manual_seed(2)
    labels = torch.randint(0, 9, (3, 4), generator=generator).where(labelled, -100)
    states = torch.randn(3, 4, 5, generator=generator).requires_grad_()
    weight = torch.randn(9, 5, generator=generator).requires_grad_()
    ours, expected = of_both(states, weight, None, labels, shift=False, rows_at_once=rows_at_once)
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5)


def test_states_of_half_precision_are_multiplied_as_autocast_says():
    labels = random_batch()[1]
    states, weight = torch.randn(8, 6, 16), torch.randn(11, 16)
    expected = linear_language_modeling(states, weight, None, labels, shift=True)
    with torch.autocast("cpu", torch.bfloat16):
        ours = linear_language_modeling(states, weight, None, labels, shift=True)
    assert ours.dtype == torch.float32
    assert float(ours) != float(expected)
    assert float(ours) == pytest.approx(float(expected), rel=1e-2)


def test_no_label_beyond_a_chunk_has_its_logits_at_the_same_time():
    states = torch.randn(40, 4, 8).requires_grad_()
    weight, labels = torch.randn(2000, 8), torch.randint(0, 2000, (40, 4))

    def ours():
        linear_language_modeling(
            states, weight, None, labels, shift=False, rows_at_once=16
        ).backward()

    assert peak_memory(ours, "cpu") < 2 * 16 * 2000 * 4


def test_similarity_is_that_of_the_best_query():
    images = functional.normalize(torch.randn(3, 4, 8), dim=-1)
    texts = functional.normalize(torch.randn(5, 8), dim=-1)
    expected = torch.stack([(image @ texts.T).max(0).values for image in images])
    torch.testing.assert_close(similarities(images, texts), expected)
    with torch.autocast("cpu", torch.bfloat16):
        assert similarities(images, texts).dtype == torch.float32


def test_contrastive_smooths_its_targets():
    logits, targets = torch.randn(3, 7), torch.eye(3, 7)
    expected = functional.cross_entropy(
        logits, torch.arange(3), label_smoothing=0.1, reduction="sum"
    )
    torch.testing.assert_close(contrastive(logits, targets), expected)


def test_matching_leaves_out_rows_of_no_weight():
    logits, matches = torch.randn(3, 2), torch.tensor([1, 0, 0])
    expected = functional.cross_entropy(logits[:2], matches[:2], reduction="sum")
    torch.testing.assert_close(matching(logits, matches, torch.tensor([1.0, 1.0, 0.0])), expected)


def test_text_generation_is_smoothed_and_summed():
    logits, labels = torch.randn(4, 9), torch.tensor([1, 0, 8, 8])
    logs = logits.log_softmax(1)
    expected = -0.9 * logs[torch.arange(4), labels].sum() - 0.1 * logs.mean(1).sum()
    torch.testing.assert_close(text_generation(logits, labels), expected)
