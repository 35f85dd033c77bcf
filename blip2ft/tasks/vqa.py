"""Visual question answering: training samples, answers written or chosen, and their scores."""

from collections import Counter
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset

from blip2ft.bars import progress_bar
from blip2ft.data.batches import IGNORE, Sample, TextLayout
from blip2ft.data.broken import Broken, broken_image
from blip2ft.data.images import EvalTransform, TrainTransform
from blip2ft.data.loading import load_pixels
from blip2ft.data.order import Key
from blip2ft.data.questions import Question
from blip2ft.metrics.vqa_accuracy import exact_match, multiple_choice, vqa_accuracy
from blip2ft.tasks.caption import predict


def ask(template: str, question: str) -> str:
    """The prompt for a question, in training and answering alike: "Question: {} Answer:".

    Raises ValueError for a template without exactly one {}, and for an empty question.
    """
    if template.count("{}") != 1:
        raise ValueError(
            f"the prompt {template!r} must have exactly one {{}}, where the question goes, "
            'such as "Question: {} Answer:"'
        )
    question = " ".join(question.split())
    if not question:
        raise ValueError("an empty question can't be asked")
    return template.replace("{}", question)


def check_questions(layout: TextLayout, template: str, questions: Sequence[Question]) -> None:
    """Raise ValueError, with file and id, for a question longer than the Q-Former's positions.

    And for what `ask` refuses.
    """
    for question in questions:
        prompt = ask(template, question.question)
        if layout.qformer_tokenizer is None:
            continue
        if len(prompt) + 2 <= layout.qformer_positions:
            continue  # a token has a character at least, and two are special
        tokens = len(layout.qformer_tokenizer(prompt)["input_ids"])
        if tokens > layout.qformer_positions:
            raise ValueError(
                f"{question.origin}: question {question.question_id!r} has {tokens} tokens with "
                f"its prompt, and the Q-Former's text branch {layout.qformer_positions} positions; "
                "shorten it, drop it, or set question_in_qformer to false"
            )


@dataclass(frozen=True)
class AnswerSamples(Dataset):
    """Questions with an answer each, as training samples.

    pairs: (question, answer, weight); an answer of None is drawn from the annotators' anew each
    epoch. What is drawn depends on seed, epoch and index alone.
    skip: a question whose image can't be read is `Broken`, else an error.
    """

    questions: Sequence[Question]
    pairs: Sequence[tuple[int, str | None, float]]
    transform: TrainTransform
    template: str
    seed: int
    skip: bool = False

    def __len__(self) -> int:
        return len(self.pairs)

    def length(self, key: Key) -> int:
        """Characters of a sample's question, beside which answers are short."""
        return len(self.questions[self.pairs[key.sample][0]].question)

    def origin(self, key: Key) -> str:
        """Which question a sample has and where it was read, for messages."""
        question = self.questions[self.pairs[key.sample][0]]
        return f"{question.question_id} ({question.origin})"

    def __getitem__(self, key: Key) -> Sample | Broken:
        number, answer, weight = self.pairs[key.sample]
        question = self.questions[number]
        rng = np.random.default_rng([self.seed, key.epoch, key.sample])
        try:
            pixels = load_pixels(question, self.transform, rng)
        except ValueError as error:
            return broken_image(question.origin, error, skip=self.skip)
        if answer is None:
            given = [text for text in question.answers if text.strip()]
            answer = given[rng.integers(len(given))]
        return Sample(pixels, ask(self.template, question.question), answer, weight)


def answer_samples(
    questions: Sequence[Question],
    transform: TrainTransform,
    template: str,
    seed: int,
    *,
    answers: str = "sample",
    skip: bool = False,
) -> AnswerSamples:
    """The training samples of `questions`.

    answers: "sample" asks a question once an epoch, with an answer drawn as often as annotators
    gave it; "all" asks it once for each different answer, weighed by its share of the annotators
    (the way of ALBEF and of LAVIS datasets/datasets/coco_vqa_datasets.py). Both have the same
    expected gradient; "all" has less noise and costs a sample for each answer.
    skip: leave out questions whose image can't be read.
    """
    if answers == "sample":
        pairs: list[tuple[int, str | None, float]] = [(i, None, 1.0) for i in range(len(questions))]
    elif answers == "all":
        pairs = [
            (i, answer, count / len(question.answers))
            for i, question in enumerate(questions)
            for answer, count in Counter(question.answers).items()
            if answer.strip()
        ]
    else:
        raise ValueError(f"answers is {answers!r}: allowed are sample, all")
    return AnswerSamples(questions, pairs, transform, template, seed, skip)


def candidate_ids(layout: TextLayout, template: str, candidates: Sequence[str]) -> list[list[int]]:
    """The tokens of each candidate answer, end token included, as they follow any question."""
    prompt = ask(template, "what")
    return [layout.target_ids(prompt, candidate) for candidate in candidates]


@torch.inference_mode()
def rank_candidates(
    model: Any,
    layout: TextLayout,
    sample: Sample,
    candidates: Sequence[Sequence[int]],
    *,
    batch_size: int = 128,
) -> Tensor:
    """The log-likelihood (N,), fp32, of each candidate as the answer to one question.

    candidates: as `candidate_ids` gives them. Image and prompt are computed once; every candidate
    goes on from their keys and values (decoder-only models) or from the encoder's states.
    """
    inputs = {k: v.to(model.device) for k, v in layout.collate_prompts([sample]).items()}
    if layout.is_encoder_decoder:
        return _rank_by_decoder(model, layout, inputs, candidates, batch_size)
    asked = model(**inputs, use_cache=True)
    first = asked.logits[:, -1].float().log_softmax(-1)[0]
    cache = asked.language_model_outputs.past_key_values
    cache.batch_repeat_interleave(min(batch_size, len(candidates)))
    scores = []
    for start in range(0, len(candidates), batch_size):
        ids = _padded(candidates[start : start + batch_size], model.device)
        score = first[ids[:, 0]]
        if len(ids) < batch_size and start:
            cache.batch_select_indices(torch.arange(len(ids), device=model.device))
        going_on = ids[:, :-1]
        if going_on.shape[1]:
            seen = inputs["attention_mask"].expand(len(ids), -1)
            logits = model.language_model(
                input_ids=going_on.clamp(min=0),
                attention_mask=torch.cat([seen, (going_on != IGNORE).long()], dim=1),
                past_key_values=cache,
                use_cache=True,
            ).logits
            score = score + _log_likelihood(logits, ids[:, 1:])
            cache.crop(-going_on.shape[1])
        scores.append(score)
    return torch.cat(scores)


def _rank_by_decoder(
    model: Any,
    layout: TextLayout,
    inputs: dict[str, Tensor],
    candidates: Sequence[Sequence[int]],
    batch_size: int,
) -> Tensor:
    start = torch.full((1, 1), layout.decoder_start_token_id or 0, device=model.device)
    asked = model(**inputs, decoder_input_ids=start)
    states, scores = asked.language_model_outputs.encoder_last_hidden_state, []
    for first in range(0, len(candidates), batch_size):
        ids = _padded(candidates[first : first + batch_size], model.device)
        before = ids[:, :-1].clamp(min=0)
        logits = model.language_model(
            encoder_outputs=(states.expand(len(ids), -1, -1),),
            attention_mask=inputs["attention_mask"].expand(len(ids), -1),
            decoder_input_ids=torch.cat([start.expand(len(ids), 1), before], dim=1),
        ).logits
        scores.append(_log_likelihood(logits, ids))
    return torch.cat(scores)


def _padded(rows: Sequence[Sequence[int]], device: torch.device) -> Tensor:
    return pad_sequence([torch.tensor(row) for row in rows], True, IGNORE).to(device)


def _log_likelihood(logits: Tensor, ids: Tensor) -> Tensor:
    """Of tokens (N, L), padded with -100, at the places of `logits` (N, L, V): (N,)."""
    losses = functional.cross_entropy(
        logits.float().transpose(1, 2), ids, ignore_index=IGNORE, reduction="none"
    )
    return -losses.sum(1)


def answer(
    model: Any,
    layout: TextLayout,
    transform: EvalTransform,
    questions: Sequence[Question],
    *,
    template: str,
    candidates: Sequence[str] | None = None,
    batch_size: int = 16,
    workers: int = 0,
    accelerator: Accelerator | None = None,
    progress: bool = False,
    **options: Any,
) -> list[str]:
    """One answer a question, in their order, on every process.

    A question with choices gets the likeliest of them, and with `candidates` any other question the
    likeliest of those; else the model writes (options: see `tasks.caption.generate`).
    """
    written = [i for i, q in enumerate(questions) if not (q.choices or candidates)]
    answers = [""] * len(questions)
    if written:
        found = predict(
            model,
            layout,
            transform,
            [questions[i] for i in written],
            prompts=[ask(template, questions[i].question) for i in written],
            batch_size=batch_size,
            workers=workers,
            accelerator=accelerator,
            progress=progress,
            **options,
        )
        for i, text in zip(written, found, strict=True):
            answers[i] = text
    chosen = sorted(set(range(len(questions))) - set(written))
    if not chosen:
        return answers
    process, world = 0, 1
    if accelerator is not None:
        process, world = accelerator.process_index, accelerator.num_processes
    shared = None if candidates is None else candidate_ids(layout, template, candidates)
    model.eval()
    mine = []
    show = progress and process == 0
    with accelerator.autocast() if accelerator else nullcontext():
        for i in progress_bar(chosen[process::world], "choose", hidden=not show, leave=False):
            question = questions[i]
            choices, ids = candidates or (), shared
            if question.choices:
                choices, ids = question.choices, candidate_ids(layout, template, question.choices)
            assert ids is not None
            pixels = load_pixels(question, transform)
            sample = Sample(pixels, ask(template, question.question))
            best = rank_candidates(model, layout, sample, ids).argmax()
            mine.append((i, choices[int(best)]))
    for i, text in gather_object(mine) if world > 1 else mine:
        answers[i] = text
    return answers


def score(questions: Sequence[Question], answers: Sequence[str]) -> dict[str, float]:
    """The accuracy of answers, 0 to 100, overall and by answer type; {} where no answer is known.

    VQA accuracy where every question has several people's answers, the share of right choices
    where every one has choices, and else exact match with the first answer, as GQA counts.
    """
    if not all(question.answers for question in questions):
        return {}
    types = [question.answer_type or "other" for question in questions]
    if all(question.choices for question in questions):
        right = [question.correct_choice for question in questions]
        if None not in right:
            offered = [question.choices for question in questions]
            return {"accuracy": multiple_choice(answers, offered, right)}  # type: ignore[arg-type]
    if all(len(question.answers) > 1 for question in questions):
        found = vqa_accuracy(answers, [question.answers for question in questions], types)
        by_type = {f"accuracy_{kind}": v for kind, v in sorted(found["perAnswerType"].items())}
        return {"accuracy": found["overall"], **by_type}
    return {"accuracy": exact_match(answers, [question.answers[0] for question in questions])}


def commonest_answers(train: Sequence[Question], asked: Sequence[Question]) -> list[str]:
    """To each of `asked` the commonest answer of its type in `train`: what needs no image."""
    counts: dict[str | None, Counter] = {}
    for question in train:
        counts.setdefault(question.answer_type, Counter()).update(question.answers)
    overall = sum(counts.values(), Counter())
    return [
        counts.get(question.answer_type, overall).most_common(1)[0][0] if overall else ""
        for question in asked
    ]
