"""The card of a run: complete, true of the run, and taken by the hub's own client."""

import json
import re
from itertools import pairwise
from pathlib import Path

import huggingface_hub
import pytest
import yaml
from huggingface_hub import ModelCard
from huggingface_hub.repocard_data import model_index_to_eval_results
from made_run import BASE, COMMIT, FINDER

from blip2ft.card.card import model_card
from blip2ft.card.facts import Release
from blip2ft.card.said import NOT_SAID, QUESTIONS

TASKS = ("caption", "vqa", "retrieval")
TEMPLATE = Path(huggingface_hub.__file__).parent / "templates" / "modelcard_template.md"
OF_A_PERSON = [
    "developers",
    "contact",
    "license",
    "data_source",
    "data_license",
    "data_people",
    "intended_use",
    "out_of_scope_use",
    "country",
    "provider",
    "funded_by",
    "card_authors",
]


def outline(text):
    """Headings and the labels of lists, without the run's own name and "[optional]"."""
    text = re.sub(r"^---\n.*?\n---\n", "", text, flags=re.DOTALL)
    text = re.sub(r"(?<=Model Card for ).*| \[optional\]", "", text)
    text = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    return re.findall(r"^(#+ .*|(?:- )?\*\*[\w() ]+:\*\*)", text, flags=re.MULTILINE)


@pytest.mark.parametrize("task", TASKS)
def test_every_section_of_the_hubs_template_is_there_in_its_order(made_run, task):
    wanted = outline(TEMPLATE.read_text())
    assert len([line for line in wanted if line.startswith("#")]) == 36
    found = [line for line in outline(model_card(made_run(task), {}).text) if line in wanted]
    assert found == wanted


@pytest.mark.parametrize("task", TASKS)
def test_every_section_says_something(made_run, task):
    text = model_card(made_run(task), {}).text
    assert "More Information Needed" not in text
    body = text.split("\n---\n", 1)[1]
    parts = re.split(r"^(#+) (.*)$", body, flags=re.MULTILINE)[1:]
    sections = list(zip(parts[::3], parts[1::3], parts[2::3], strict=True))
    for (level, name, said), (below, _, _) in pairwise(sections):
        assert said.strip() or len(below) > len(level), name
    assert sections[-1][2].strip()


@pytest.mark.parametrize("task", TASKS)
def test_nothing_is_missing_but_what_only_a_person_can_say(made_run, task):
    card = model_card(made_run(task), {})
    assert card.missing == OF_A_PERSON
    label = {"license": "License", "developers": "Developed by", "data_people": "People in them"}
    label |= {"data_source": "Where they come from", "data_license": "Licence or permission"}
    label |= {"intended_use": "Made for", "country": "Compute Region", "funded_by": "Funded by"}
    label |= {"provider": "Cloud Provider"}
    for question in card.missing:
        if question in label:
            assert f"**{label[question]}:** {NOT_SAID}" in card.text, question
    for heading in ("### Out-of-Scope Use", "## Model Card Authors", "## Model Card Contact"):
        assert f"{heading}\n\n{NOT_SAID}" in card.text


@pytest.mark.parametrize("task", TASKS)
def test_with_every_answer_nothing_is_missing(made_run, said, task):
    assert said.keys() == QUESTIONS.keys()
    card = model_card(made_run(task), said)
    assert card.missing == []
    assert NOT_SAID not in card.text
    alike = {"device_watts"}  # the run was metered
    for question in said.keys() - alike:
        answer = said[question]
        for text in answer if isinstance(answer, list) else [answer]:
            assert text in card.text, question


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("merged", [False, True])
def test_the_hubs_client_reads_the_metadata(made_run, task, merged):
    run = made_run(task)
    release = Release("anna/birds", merged=merged)
    card = ModelCard(model_card(run, {"license": "cc-by-sa-4.0"}, release).text)
    data = card.data
    assert data.library_name == ("transformers" if merged else "blip2ft")
    assert data.base_model == (FINDER if task == "retrieval" else BASE)
    assert data.base_model_relation == ("finetune" if merged else "adapter")
    assert (data.license, data.language) == ("cc-by-sa-4.0", "en")
    assert data.pipeline_tag in {
        "image-to-text",
        "visual-question-answering",
        "zero-shot-image-classification",
    }
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    final = {k: v for k, v in rows[-1].items() if k not in ("step", "split")}
    assert rows[-1]["split"] == "test"
    assert sorted(result.metric_value for result in data.eval_results) == sorted(final.values())
    assert {result.dataset_split for result in data.eval_results} == {"test"}
    # what the hub itself reads is the list, not the client's flat results
    head = yaml.safe_load(model_card(run, {}, release).text.split("---")[1])
    name, results = model_index_to_eval_results(head["model-index"])
    assert name == "birds"
    assert len(results) == len(final)
    assert all("95 % interval" in result.metric_name for result in results)


def test_scores_are_told_with_what_they_were_and_how_far_apart(made_run):
    text = model_card(made_run("caption"), {}).text
    assert "| score | before training | this model | difference |" in text
    row = re.search(r"^\| exact match \| (.*) \|$", text, re.MULTILINE)[1]
    assert row == "0.08333 (0 to 0.2500) | 0.8333 (0.5833 to 1.000) | **+0.75 (0.3333 to 1.000)**"
    assert "Of 12 images, 10 score better than before, 1 the same and 1 worse." in text
    assert "1 of 12 images score worse than before training" in text
    assert "| a blue square number 2 | a blue square number 2 | a cat |" in text
    assert "25.0 % of its captions are, to the letter, one of the captions that it learned" in text


def test_what_got_worse_is_told_of_questions_and_of_rankings(made_run, tmp_path):
    text = model_card(made_run("vqa"), {}).text
    assert "| question | reference | before training | this model |" in text
    assert "| What colour is it? | blue | blue | no |" in text
    assert "By group, accuracy is lowest for day (83.33, 50.00 to 100.0; 12 questions)" in text


def test_rankings_that_got_worse_show_the_best_texts(made_run):
    text = model_card(made_run("retrieval"), {}).text
    assert "| reference | best text before training | best text of this model |" in text
    assert "| a blue square number 2 | a blue square number 2 | a cat |" in text
    assert "1 of 12 images score worse" in text


def test_answers_are_shown_no_more_than_asked_for(made_run):
    run = made_run("caption")
    assert "a cat" not in model_card(run, {}, Release(examples=0)).text


def test_groups_are_those_with_a_few_values_or_those_that_are_asked_for(made_run):
    run = made_run("vqa")
    text = model_card(run, {}).text
    assert "<summary>By answer&#95;type</summary>" in text
    assert "| night | 12 | 100.0 (100.0 to 100.0) |" in text
    text = model_card(run, {}, Release(fields=("group",))).text
    assert "<summary>By group</summary>" in text
    assert "answer&#95;type" not in text
    assert "--by group" in text
    with pytest.raises(ValueError, match=r"no record has a field 'grop'; did you mean group\?"):
        model_card(run, {}, Release(fields=("grop",)))


def test_a_field_with_a_value_for_each_is_no_group(made_run):
    run = made_run("caption")
    for path in (run / "predictions").glob("test-*.jsonl"):
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        for number, row in enumerate(rows):
            row["fields"] |= {"photographer": f"P{number}", "camera": "A" if number < 8 else "B"}
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    text = model_card(run, {}).text
    assert "photographer" not in text
    assert "camera" not in text  # B has four records, of which nothing much can be said
    text = model_card(run, {}, Release(fields=("camera",))).text
    assert "| B | 4 |" in text
    assert "By camera, CIDEr-D is lowest" not in text


def test_base_data_and_settings_are_told(made_run):
    text = model_card(made_run("caption"), {}).text
    assert f"https://huggingface.co/{BASE}/tree/{COMMIT}" in text
    assert "its licence: MIT, as their page on the hub says; its language model is Meta's OPT" in (
        text
    )
    assert "12 images with 36 captions, 30 of them different, of 4.5 words on average" in text
    assert "en (as py3langid tells of the captions learned from: en 34, others or not sure 2)" in (
        text
    )
    assert "- **Training regime:** bf16 mixed precision: trained weights are kept in fp32" in text
    assert "| learning rate | 1e-05 after 4 steps of warm-up, then a cosine to 0 |" in text
    assert "| weights kept | those of step 40, the best on the validation split |" in text
    assert "1 min 0 s in all, of which 40 s in training steps and 12 s in evaluations" in text
    assert "8.0 samples a second in training steps, 320 in all" in text
    assert "4.0 GB of the host, 12.0 GB of the device" in text
    assert "**Devices:** NVIDIA A100-SXM4-40GB" in text
    assert "Python 3.11.7, blip2ft 0.1.0, torch 2.13.0" in text


def test_a_run_without_a_test_split_says_that_its_scores_flatter(made_run):
    run = made_run("caption")
    settings = yaml.safe_load((run / "config.yaml").read_text())
    settings["data"]["test"] = None
    (run / "config.yaml").write_text(yaml.safe_dump(settings))
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    rows = [row for row in rows if row["split"] == "validation"]
    rows.append(rows[0] | {"step": 0})
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for path in (run / "predictions").glob("test-*"):
        step = path.name.removeprefix("test-")
        path.rename(path.with_name(f"validation-{step}"))
    text = model_card(run, {}).text
    assert "The validation split is validation.csv: 12 images" in text
    assert "**It also chose the weights**" in text
    assert "--split validation \\\n    --data.validation.source YOUR_SOURCE" in text


def test_lora_and_fewer_bits_are_told(made_run):
    run = made_run("caption")
    path = run / "adapter" / "blip2ft.json"
    lora = {"r": 8, "alpha": 16, "dropout": 0.1, "dora": True, "rslora": True, "init": "pissa"}
    described = json.loads(path.read_text()) | {"lora": lora, "quantize": {"language": "nf4"}}
    described["parts"]["language"] = "lora"
    path.write_text(json.dumps(described))
    text = model_card(run, {}).text
    assert (
        "| LoRA | DoRA, r 8, alpha 16 (scaled by alpha / sqrt(r)), dropout 0.1, start pissa |"
        in (text)
    )
    assert "held in fewer bits while it trained: language model in nf4" in text
    assert "language model trained by LoRA" in text
    assert "It was not changed here" not in text
    assert "- **LoRA**: " in text
    assert "lora" in ModelCard(text).data.tags
    assert "its LoRA, but not what is in `trained.safetensors` nor the image size of 224 px" in text
    # parts trained in full are beside the LoRA, which peft alone would load without a word
    assert ModelCard(text).data.library_name == "blip2ft"
    assert "PeftModel" not in text


def test_a_text_branch_of_another_model_is_named(made_run):
    run = made_run("vqa")
    path = run / "adapter" / "blip2ft.json"
    described = json.loads(path.read_text())
    described |= {"question_in_qformer": True, "stage1": "bert-base-uncased"}
    path.write_text(json.dumps(described))
    text = model_card(run, {}).text
    assert "The Q-Former's text branch began as that of `bert-base-uncased`." in text
    assert "InstructBlipForConditionalGeneration" in text


def test_a_lora_alone_is_for_peft_too(made_run):
    run = made_run("caption")
    path = run / "adapter" / "blip2ft.json"
    lora = {"r": 8, "alpha": 16, "dropout": 0.1, "dora": False, "rslora": False, "init": "default"}
    path.write_text(json.dumps(json.loads(path.read_text()) | {"lora": lora}))
    (run / "adapter" / "trained.safetensors").rename(run / "adapter" / "adapter_model.safetensors")
    settings = (run / "config.yaml").read_text().replace("image_size: 224", "image_size: null")
    (run / "config.yaml").write_text(settings)
    text = model_card(run, {}, Release("anna/birds")).text
    assert ModelCard(text).data.library_name == "peft"
    assert f'from_pretrained("{BASE}", revision="{COMMIT}")' in text
    assert 'PeftModel.from_pretrained(model, "anna/birds")' in text


def test_pre_training_on_shards_is_told_as_such(made_run):
    run = made_run("caption")
    settings = yaml.safe_load((run / "config.yaml").read_text())
    source = {"source": "data/pretrain/coco/*.tar", "format": "auto"}
    settings["data"] |= {"train": None, "stream": {"sources": [source]}}
    (run / "config.yaml").write_text(yaml.safe_dump(settings))
    (run / "training-data.json").write_text('{"samples": 5000, "shards": 1}')
    card = model_card(run, {})
    assert "language" in card.missing
    assert "trained for image captioning" in card.text
    assert "fine-tuned" not in card.text.split("\n---\n", 1)[1]
    assert "**Read from:** data/pretrain/coco/&#42;.tar" in card.text
    assert "**Size:** 5,000 images with captions, in 1 shard" in card.text


def test_many_processes_are_told(made_run):
    run = made_run("caption")
    found = json.loads((run / "resources.json").read_text())
    found |= {"processes": 16, "machines": 2, "devices": ["H100"] * 12 + ["A100"] * 4}
    (run / "resources.json").write_text(json.dumps(found))
    text = model_card(run, {}).text
    assert "**Hardware Type:** 12 x H100, 4 x A100" in text
    assert "0.02 h (1 min 0 s), on each of 16 devices: 0.27 in all" in text
    assert "It was trained by 16 processes on 2 machines." in text
    assert "in micro-batches of 4 on 16 processes" in text


def test_a_base_of_ones_own_is_asked_about(made_run, tmp_path):
    run = made_run("caption")
    path = run / "adapter" / "blip2ft.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"base": f"{tmp_path}/mine"}))
    card = model_card(run, {})
    assert {"base_license", "base_training_data"} <= set(card.missing)
    assert "`mine`, a folder where it was trained, which isn't known to be on the hub" in card.text
    assert str(tmp_path) not in card.text
    assert "Salesforce" not in card.text
    assert ModelCard(card.text).data.get("base_model") is None
    known = model_card(run, {"base_model": "Salesforce/blip2-flan-t5-xl"})
    assert "base_license" not in known.missing
    assert "FlanT5" in known.text
    assert ModelCard(known.text).data.base_model == "Salesforce/blip2-flan-t5-xl"


def test_what_was_filtered_and_left_out_is_told(made_run):
    run = made_run("caption")
    settings = yaml.safe_load((run / "config.yaml").read_text())
    settings["data"]["filters"] |= {"harmful": "drop", "personal": "mask"}
    (run / "config.yaml").write_text(yaml.safe_dump(settings))
    (run / "filtered.jsonl").write_text('{"text": 1}\n' * 3)
    (run / "broken.jsonl").write_text('{"image": 1}\n' * 2)
    (run / "nonfinite.jsonl").write_text('{"step": 7}\n')
    text = model_card(run, {}).text
    assert "harmful words: drop, personal data: mask; 3 texts dropped or masked" in text
    assert "**Left out:** 2 training samples that couldn't be read" in text
    assert "**Left out:** 1 step whose loss or gradient wasn't finite" in text


def test_a_run_of_an_earlier_version_has_a_card_too(made_run):
    run = made_run("caption")
    for name in ("resources.json", "training-data.json", "environment.json", "base.json"):
        (run / name).unlink()
    for path in (run / "predictions").iterdir():
        path.unlink()
    card = model_card(run, {})
    assert {"language", "device_watts"} <= set(card.missing)
    assert card.text.count("not recorded by the version that trained it") >= 3
    assert "| CIDEr-D | 0.4538 | 4.538 |" in card.text
    ModelCard(card.text)


def test_what_is_no_trained_run_is_refused(made_run, tmp_path):
    with pytest.raises(ValueError, match=r"is no run: it has no config.yaml; pass the --output"):
        model_card(tmp_path, {})
    run = made_run("vqa")
    settings = run / "config.yaml"
    text = settings.read_text()
    settings.write_text(text.replace("evaluate_only: false", "evaluate_only: true"))
    with pytest.raises(ValueError, match=r"only evaluated a model .* trained nothing"):
        model_card(run, {})
    settings.write_text(text)
    (run / "training-data.json").write_text("{")
    with pytest.raises(ValueError, match=r"training-data.json is damaged .* delete it"):
        model_card(run, {})
    (run / "adapter" / "blip2ft.json").unlink()
    with pytest.raises(ValueError, match="hasn't ended, so it has no adapter yet"):
        model_card(run, {})


def test_no_path_of_this_machine_is_in_a_card(made_run, said, tmp_path):
    run = made_run("caption")
    environment = json.loads((run / "environment.json").read_text())
    environment["command"] = ["/home/anna/recipes/caption.py", "--output", str(run)]
    (run / "environment.json").write_text(json.dumps(environment))
    text = model_card(run, said | {"known_limits": f"See {tmp_path}/notes.txt."}).text
    assert str(tmp_path) not in text
    assert "/home/anna" not in text
    assert "`caption.py --output run`" in text


def test_what_is_merged_and_transformers_can_not_load_is_told(made_run, tmp_path):
    run = made_run("retrieval")
    base = tmp_path / "vit-l"
    base.mkdir()
    path = run / "adapter" / "blip2ft.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"base": str(base)}))
    for activation, library in (("blip2ft.quick_gelu", "blip2ft"), ("gelu", "transformers")):
        config = {"vision_config": {"hidden_act": activation}}
        (base / "config.json").write_text(json.dumps(config))
        text = model_card(run, {}, Release(merged=True)).text
        assert ModelCard(text).data.library_name == library
        assert ("With transformers alone" in text) == (library == "transformers")
        assert ("transformers alone doesn't load it" in text) == (library == "blip2ft")
        assert "measured in the run, before what was trained was merged" in text
