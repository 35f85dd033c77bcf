"""What the model is for, what it isn't for, and how to load it."""

from blip2ft.card.about import base_link, revision_of
from blip2ft.card.facts import Facts
from blip2ft.card.languages import languages_of
from blip2ft.card.markdown import block, code
from blip2ft.card.said import NOT_SAID
from blip2ft.card.words import TASKS, class_of
from blip2ft.models.adapters import FULL_FILE

CLI = {
    "caption": "blip2ft caption photo.jpg --model {}",
    "vqa": 'blip2ft ask photo.jpg "How many dogs are there?" --model {}',
    "retrieval": "blip2ft index photos --out photos.index --model {}\n"
    'blip2ft search photos.index "a dog"',
}
LOAD = {"caption": "load_captioner", "vqa": "load_vqa", "retrieval": "load_retriever"}


def direct_use(facts: Facts) -> str:
    does = f"{TASKS[facts.task].does} {_asked_with(facts)}".strip()
    return f"{does}\n\n**Made for:** {facts.text('intended_use')}"


def downstream_use(facts: Facts) -> str:
    return facts.text("downstream_use")


def out_of_scope_use(facts: Facts) -> str:
    """What a person says, and what nothing here speaks for."""
    languages = languages_of(facts)
    other = f", nor for other languages than {', '.join(languages)}" if languages else ""
    told = (
        f"{facts.text('out_of_scope_use')}\n\n"
        "Nothing that was measured here speaks for other images than those of the kind that it was "
        f"tested on{other}."
    )
    if facts.release.merged:
        return told
    return f"{told} As an adapter it belongs onto {base_link(facts)} and no other model."


def recommendations(facts: Facts) -> str:
    if "recommendations" in facts.said:
        return facts.text("recommendations")
    return (
        f"{NOT_SAID} In general: try it on images of your own kind before you rely on it, look at "
        "the results below, and tell people that they read a machine's words."
    )


def get_started(facts: Facts) -> str:
    """The command line, Python, and stock transformers where these load it."""
    cli = block("bash", CLI[facts.task].format(facts.repo))
    told = f"With blip2ft installed:\n\n{cli}\n\nIn Python:\n\n{block('python', _python(facts))}"
    if facts.release.merged and facts.is_clip:
        return f"{told}\n\ntransformers alone doesn't load it, as its image encoder is CLIP's."
    if facts.release.merged:
        return f"{told}\n\nWith transformers alone:\n\n{block('python', _stock(facts))}"
    if facts.is_lora_alone and facts.base is not None:
        return f"{told}\n\nWith peft alone:\n\n{block('python', _peft(facts))}"
    return f"{told}\n\n{_others(facts)}"


def _others(facts: Facts) -> str:
    """What of an adapter other libraries load."""
    told = "peft alone loads nothing of it, as there is no LoRA in it"
    if facts.trained.get("lora"):
        size = facts.trained["image_size"]
        resized = facts.settings["model"]["image_size"] is not None
        lacking = ["what is in `trained.safetensors`"] if FULL_FILE in facts.files else []
        lacking += [f"the image size of {size} px"] if resized else []
        told = f"peft alone loads its LoRA{', but not ' if lacking else ''}{' nor '.join(lacking)}"
    return f"{told}. `blip2ft export` makes a whole model of it."


def _asked_with(facts: Facts) -> str:
    """The prompt, and how answers are decoded: those of the training are what it knows."""
    if facts.task == "retrieval":
        return ""
    decoding = facts.trained["generation"]
    prompt = facts.trained["prompt"]
    told = f"It was trained with the prompt {code(prompt)}" if prompt else "It has no prompt"
    beams = decoding["num_beams"]
    how = f"beam search with {beams} beams" if beams > 1 else "the likeliest token each time"
    if facts.task == "vqa" and facts.settings.get("candidates"):
        how = "the likeliest of a list of answers"
    return (
        f"{told}, and its answers are decoded by {how}, at most {decoding['max_new_tokens']} "
        "tokens; blip2ft takes both from `blip2ft.json`."
    )


def _python(facts: Facts) -> str:
    """Python that answers, with our functions."""
    if facts.release.merged:
        plain_vqa = facts.task == "vqa" and not facts.trained.get("question_in_qformer")
        more = ", question_in_qformer=False" if plain_vqa else ""
        load = f'model, processor = blip2ft.{LOAD[facts.task]}("{facts.repo}"{more})'
    else:
        load = f'model, processor, description = blip2ft.load_finetuned("{facts.repo}")'
    if facts.task == "retrieval":
        return (
            "import blip2ft\n\n"
            f'blip2ft.index_photos("photos", "photos.index", model="{facts.repo}")\n'
            'print(blip2ft.search_photos("photos.index", "a dog"))'
        )
    about, call, prompt = '"photo.jpg"', "caption", "prompt"
    if facts.task == "vqa":
        about, call, prompt = '("photo.jpg", "How many dogs are there?")', "ask", "template"
    options = {prompt: facts.trained["prompt"], **facts.trained["generation"]}
    options.pop("batch_size", None)  # no answer depends on it
    told = ", ".join(f"{name}={value!r}" for name, value in options.items())
    return (
        f"import blip2ft\n\n{load}\noptions = dict({told})\n"
        f"print(blip2ft.{call}(model, processor, [{about}], **options))"
    )


def _peft(facts: Facts) -> str:
    """Python that loads a LoRA onto the stock model, with peft alone."""
    name, revision = class_of(facts.trained), revision_of(facts)
    pinned = f', revision="{revision}"' if revision else ""
    return (
        f"from peft import PeftModel\nfrom transformers import {name}\n\n"
        f'model = {name}.from_pretrained("{facts.base}"{pinned})\n'
        f'model = PeftModel.from_pretrained(model, "{facts.repo}")'
    )


def _stock(facts: Facts) -> str:
    """Python that answers, with transformers alone, which has to be told of its own decoding."""
    name = class_of(facts.trained)
    start = (
        "from PIL import Image\n"
        f"from transformers import AutoProcessor, {name}\n\n"
        f'processor = AutoProcessor.from_pretrained("{facts.repo}")\n'
        f'model = {name}.from_pretrained("{facts.repo}").eval()\n'
        'image = Image.open("photo.jpg").convert("RGB")\n'
    )
    if facts.task == "retrieval":
        return (
            f'{start}inputs = processor(images=image, text="a dog", return_tensors="pt")\n'
            "logits = model(**inputs, use_image_text_matching_head=True).logits_per_image\n"
            "print(logits.softmax(dim=1)[0, 1])  # how likely the two belong together"
        )
    prompt = facts.trained["prompt"]
    if facts.task == "vqa":
        prompt = prompt.format("How many dogs are there?")
    return (
        f'{start}inputs = processor(images=image, text={prompt!r}, return_tensors="pt")\n'
        "tokens = model.generate(**inputs, generation_config=model.generation_config)\n"
        "if not model.language_model.config.is_encoder_decoder:\n"
        '    tokens = tokens[:, inputs["input_ids"].shape[1] :]\n'
        "print(processor.batch_decode(tokens, skip_special_tokens=True)[0].strip())"
    )
