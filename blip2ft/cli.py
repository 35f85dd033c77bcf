"""The command line `blip2ft`. Heavy imports stay inside the commands, so that --help is quick."""

import argparse
import json
import re
import sys
from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NoReturn

from blip2ft import __version__
from blip2ft.data.tables import IMAGE_SUFFIXES
from blip2ft.hub import check_model_name, quiet_retries

DECODING = ("num_beams", "max_new_tokens", "length_penalty")


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """One line, with the nearest option, command or choice where one is unknown."""
        hint, near = "", []
        option = re.search(r"unrecognized arguments: .*?(--[^\s=]+)", message)
        choice = re.search(r"invalid choice: '(.*?)'", message)
        if option:
            near = get_close_matches(option[1], self._option_string_actions, 1)
        elif choice:
            choices = [str(c) for action in self._actions for c in action.choices or ()]
            near = get_close_matches(choice[1], choices, 1)
        if near:
            hint = f"; did you mean {near[0]}?"
        print(f"error: {message}{hint} (see {self.prog} --help)", file=sys.stderr)
        sys.exit(2)


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Entry point of the command `blip2ft`."""
    parser = _Parser(prog="blip2ft", description="Fine-tune BLIP-2 on your own images.")
    parser.add_argument("--version", action="version", version=f"blip2ft {__version__}")
    parser.set_defaults(debug=False)
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", parser_class=_Parser)
    for add in (
        _add_caption,
        _add_ask,
        _add_index,
        _add_search,
        _add_score,
        _add_export,
        _add_convert,
        _add_inspect,
    ):
        add(commands)
    arguments, rest = parser.parse_known_args(argv)
    if arguments.command is None and rest:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if arguments.command is None:
        parser.print_help(sys.stderr)
        sys.exit(2)
    if rest:
        # the command's own parser knows the options that could have been meant
        arguments.parser.error(f"unrecognized arguments: {' '.join(rest)}")
    from blip2ft.parse import run_cleanly

    run_cleanly(lambda: arguments.run(arguments), debug=arguments.debug)


def _command(commands: Any, name: str, help_line: str, run: Any) -> argparse.ArgumentParser:
    parser = commands.add_parser(name, help=help_line, description=help_line)
    parser.add_argument(
        "--debug",
        action="store_true",
        default=argparse.SUPPRESS,  # not to hide that of the command around this one
        help="show the traceback of an error",
    )
    parser.set_defaults(run=run, parser=parser)
    return parser


def _add_caption(commands: Any) -> None:
    parser = _command(commands, "caption", "Caption images, or answer any instruction.", _caption)
    parser.add_argument("images", nargs="+", type=Path, metavar="IMAGE", help="files or folders")
    parser.add_argument("--model", help="hub id or folder; default: the adapter's base")
    parser.add_argument("--revision", help="branch, tag or commit of a hub model")
    parser.add_argument("--adapter", type=Path, help="a run, or its adapter folder")
    parser.add_argument("--prompt", help="text to continue; default: what the model was tuned on")
    parser.add_argument("--num-beams", type=_positive, help="beams of the search (5)")
    parser.add_argument("--max-new-tokens", type=_positive, help="longest answer (30)")
    parser.add_argument("--length-penalty", type=float, help="above 0 favours long answers (1.0)")
    parser.add_argument("--batch-size", type=_positive, default=16, help="images at once (16)")
    parser.add_argument("--dtype", choices=["auto", "fp32", "bf16"], default="auto")
    parser.add_argument("--out", type=Path, help="write JSON lines here; default: standard output")


def _caption(arguments: argparse.Namespace) -> int:
    paths = list(_image_paths(arguments.images))
    if arguments.model:
        check_model_name(arguments.model)
    if arguments.out and arguments.out.exists():
        raise ValueError(f"{arguments.out} exists and is not overwritten; choose another --out")
    if not arguments.model and not arguments.adapter:
        raise ValueError("say which model: --model ID_OR_FOLDER, or --adapter RUN")
    quiet_libraries()
    from tqdm import tqdm

    from blip2ft.captioner import DEFAULT_PROMPT, caption
    from blip2ft.data.images import open_image

    model, processor, description = _load_for_answers(arguments)
    prompt = arguments.prompt
    if prompt is None:
        prompt = description.get("prompt", DEFAULT_PROMPT)
    options = _decoding(arguments, description)
    broken = 0
    out = arguments.out.open("w", encoding="utf-8") if arguments.out else sys.stdout
    # no bar among the answers on a terminal
    hidden = len(paths) < 2 or (out is sys.stdout and out.isatty())
    bar = tqdm(total=len(paths), desc="caption", file=sys.stderr, disable=hidden)
    with bar:
        for start in range(0, len(paths), arguments.batch_size):
            chunk = paths[start : start + arguments.batch_size]
            images = []
            for path, image_id in chunk:
                try:
                    images.append((path, image_id, open_image(path)))
                except ValueError as error:
                    broken += 1
                    bar.write(f"error: {error}", file=sys.stderr)
            if images:
                texts = caption(
                    model,
                    processor,
                    [image for _, _, image in images],
                    prompt=prompt,
                    batch_size=arguments.batch_size,
                    **options,
                )
                for (path, image_id, _), text in zip(images, texts, strict=True):
                    row = {"image": str(path), "image_id": image_id, "caption": text}
                    print(json.dumps(row, ensure_ascii=False), file=out, flush=True)
            bar.update(len(chunk))
    if arguments.out:
        out.close()
    if broken:
        print(f"error: {broken} of {len(paths)} images couldn't be read", file=sys.stderr)
    return 2 if broken else 0


def _add_ask(commands: Any) -> None:
    parser = _command(commands, "ask", "Answer questions about images.", _ask)
    parser.add_argument("image", nargs="?", type=Path, metavar="IMAGE", help="one image")
    parser.add_argument("question", nargs="?", metavar="QUESTION", help="what to ask about it")
    parser.add_argument(
        "--questions",
        type=Path,
        help="many instead: a table or JSON lines with image and question, or VQAv2's file",
    )
    parser.add_argument("--image-root", type=Path, help="folder of the images of --questions")
    parser.add_argument("--model", help="hub id or folder; default: the adapter's base")
    parser.add_argument("--revision", help="branch, tag or commit of a hub model")
    parser.add_argument("--adapter", type=Path, help="a run, or its adapter folder")
    parser.add_argument("--prompt", help="with {} for the question; default: that of the training")
    parser.add_argument("--num-beams", type=_positive, help="beams of the search (5)")
    parser.add_argument("--max-new-tokens", type=_positive, help="longest answer (10)")
    parser.add_argument("--length-penalty", type=float, help="above 0 favours long answers (-1.0)")
    parser.add_argument("--batch-size", type=_positive, default=16, help="questions at once (16)")
    parser.add_argument("--dtype", choices=["auto", "fp32", "bf16"], default="auto")


def _ask(arguments: argparse.Namespace) -> int:
    one = arguments.image is not None
    if one == (arguments.questions is not None) or (one and arguments.question is None):
        raise ValueError('say what to ask: IMAGE "QUESTION" for one, or --questions FILE for many')
    if arguments.model:
        check_model_name(arguments.model)
    if not arguments.model and not arguments.adapter:
        raise ValueError("say which model: --model ID_OR_FOLDER, or --adapter RUN")
    if one and not arguments.image.is_file():
        raise ValueError(f"there is no image at {arguments.image}")
    quiet_libraries()
    from blip2ft.captioner import QUESTION_TEMPLATE, ask
    from blip2ft.data.images import open_image
    from blip2ft.data.questions import read_questions

    asked = []
    if not one:
        asked = read_questions(
            arguments.questions, image_root=arguments.image_root, require_answers=False
        )
    model, processor, description = _load_for_answers(arguments)
    template = arguments.prompt or description.get("prompt", QUESTION_TEMPLATE)
    options = _decoding(arguments, description)
    if one:
        print(
            ask(
                model,
                processor,
                [(arguments.image, arguments.question)],
                template=template,
                **options,
            )[0]
        )
        return 0
    for start in range(0, len(asked), arguments.batch_size):
        chunk = asked[start : start + arguments.batch_size]
        images = [open_image(q.image, origin=q.origin) for q in chunk]
        pairs = [(image, q.question) for image, q in zip(images, chunk, strict=True)]
        answers = ask(model, processor, pairs, template=template, batch_size=len(pairs), **options)
        for q, text in zip(chunk, answers, strict=True):
            row = {"question_id": q.question_id, "question": q.question, "answer": text}
            print(json.dumps(row, ensure_ascii=False), flush=True)
    return 0


def _decoding(arguments: argparse.Namespace, description: dict[str, Any]) -> dict[str, Any]:
    """The options of `generate` that were given, else those that the model was tuned for."""
    found = dict(description.get("generation", {}))
    given = {name: getattr(arguments, name) for name in DECODING}
    found |= {name: value for name, value in given.items() if value is not None}
    return {name: found[name] for name in DECODING if name in found}


def _load_for_answers(arguments: argparse.Namespace) -> tuple[Any, Any, dict[str, Any]]:
    """Model, processor and what is known of prompt and decoding, on the best device."""
    import torch

    from blip2ft.captioner import default_device
    from blip2ft.export import DTYPES, load_finetuned
    from blip2ft.models.adapters import DESCRIPTION_FILE
    from blip2ft.models.source import read_config
    from blip2ft.models.vqa import load_vqa

    device = default_device()
    half = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    auto = torch.bfloat16 if half else torch.float32
    dtype = auto if arguments.dtype == "auto" else DTYPES[arguments.dtype]
    if arguments.adapter:
        model, processor, description = load_finetuned(
            arguments.adapter, dtype=dtype, base=arguments.model, revision=arguments.revision
        )
        if description["task"] == "retrieval":
            raise ValueError(
                f"{arguments.adapter} compares images and texts and writes none; search with it: "
                "blip2ft index, blip2ft search"
            )
    else:
        config = read_config(arguments.model, arguments.revision, ("blip-2", "instructblip"))
        model, processor = load_vqa(
            arguments.model,
            question_in_qformer=config.model_type == "instructblip",
            revision=arguments.revision,
            dtype=dtype,
        )
        path = Path(arguments.model) / DESCRIPTION_FILE
        description = json.loads(path.read_text()) if path.is_file() else {}
    return model.to(device), processor, description


def _image_paths(given: Sequence[Path]) -> Iterator[tuple[Path, str]]:
    """The images in `given` files and folders, each with its id; all before a model is loaded.

    The id is what a table in the folder calls the image: its path from there; of a file, the path
    as it is given.
    """
    for path in given:
        if path.is_dir():
            found = sorted(p for p in path.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES)
            if not found:
                allowed = ", ".join(sorted(IMAGE_SUFFIXES))
                raise ValueError(f"the folder {path} holds no image ({allowed})")
            yield from ((image, image.relative_to(path).as_posix()) for image in found)
        elif path.exists():
            yield path, path.as_posix()
        else:
            raise ValueError(f"there is no image at {path}")


def _add_index(commands: Any) -> None:
    parser = _command(commands, "index", "Index the photos of a folder, for search.", _index)
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="photos, in folders below too")
    parser.add_argument("--out", type=Path, required=True, help="the index: new, or to be extended")
    parser.add_argument("--model", help="hub id or folder of a retriever; default: the index's own")
    parser.add_argument("--revision", help="branch, tag or commit of a hub model")
    parser.add_argument("--image-size", type=_positive, help="pixels; default: the model's own")
    parser.add_argument("--batch-size", type=_positive, default=16, help="photos at once (16)")
    parser.add_argument("--workers", type=int, help="processes that open photos (8 with a GPU)")
    parser.add_argument("--dtype", choices=["auto", "fp32", "bf16"], default="auto")


def _index(arguments: argparse.Namespace) -> int:
    quiet_libraries()
    from blip2ft.index import index_photos

    done = index_photos(
        arguments.folder,
        arguments.out,
        model=arguments.model,
        revision=arguments.revision,
        image_size=arguments.image_size,
        dtype=arguments.dtype,
        batch_size=arguments.batch_size,
        workers=arguments.workers,
        progress=True,
    )
    counts = [f"{done.added} photos added", f"{done.kept} there already"]
    counts += [f"{done.moved} moved or copied"] if done.moved else []
    counts += [f"{done.gone} gone, which searches leave out"] if done.gone else []
    print(f"{arguments.out}: {', '.join(counts)}")
    for problem in done.broken:
        print(f"error: {problem}", file=sys.stderr)
    if done.broken:
        print(f"error: {len(done.broken)} photos couldn't be read", file=sys.stderr)
    return 1 if done.broken else 0


def _add_search(commands: Any) -> None:
    parser = _command(commands, "search", "Find photos of an index by words or a photo.", _search)
    parser.add_argument("index", type=Path, metavar="INDEX", help="the --out of blip2ft index")
    parser.add_argument("query", nargs="?", metavar="QUERY", help='such as "a red flag"')
    parser.add_argument("--image", type=Path, help="find photos like this one instead")
    parser.add_argument("--top", type=_positive, default=20, help="photos to show (20)")
    parser.add_argument(
        "--rerank",
        type=int,
        metavar="K",
        help="match the K most similar photos with the query, each opened and encoded again, as "
        "what this needs of a photo would fill 2 MB of the index; 0: none (32, or 128 on a GPU)",
    )
    parser.add_argument("--html", type=Path, help="contact sheet; default: in INDEX/searches/")
    parser.add_argument(
        "--faiss",
        action="store_true",
        default=None,
        help="find the most similar by faiss; from a million photos used where it is installed",
    )
    parser.add_argument("--model", help="where the index's model is now, if it moved")
    parser.add_argument("--revision", help="branch, tag or commit of a hub model")
    parser.add_argument("--dtype", choices=["auto", "fp32", "bf16"], default="auto")


def _search(arguments: argparse.Namespace) -> int:
    quiet_libraries()
    from blip2ft.contact_sheet import check_new, fresh_file, write_contact_sheet
    from blip2ft.index import search_photos
    from blip2ft.photos.files import shown

    query, image = arguments.query, arguments.image
    if arguments.html:
        check_new(arguments.html)
    found = search_photos(
        arguments.index,
        query,
        image=image,
        model=arguments.model,
        revision=arguments.revision,
        top=arguments.top,
        rerank=arguments.rerank,
        faiss=arguments.faiss,
        dtype=arguments.dtype,
    )
    print("rank    score  file")
    for rank, match in enumerate(found, start=1):
        print(f"{rank:4}  {match.score:7.3f}  {shown(match.path)}")
    name = query or f"like {image.stem}"
    sheet = arguments.html or fresh_file(arguments.index / "searches", name)
    matched = query and arguments.rerank != 0
    note = "Score: similarity" + (" plus matching logit" if matched else "")
    write_contact_sheet(sheet, found, query=query, image=image, note=note)
    print(f"contact sheet: {sheet}", file=sys.stderr)
    return 0


def _add_score(commands: Any) -> None:
    parser = _command(commands, "score", "Score predictions as the official tools do.", None)
    tasks = parser.add_subparsers(metavar="TASK", required=True, parser_class=_Parser)
    caption = _command(tasks, "caption", "BLEU, ROUGE-L, CIDEr, METEOR, SPICE.", _score_captions)
    caption.add_argument(
        "--predictions",
        type=Path,
        required=True,
        help='JSON lines {"image_id", "caption"}, or a COCO results file',
    )
    caption.add_argument(
        "--references",
        type=Path,
        required=True,
        help='JSON lines {"image_id", "captions"}, COCO annotations, or what a recipe trains on: '
        "CSV, JSONL, Parquet, Karpathy's JSON, an image folder, a dataset",
    )
    caption.add_argument("--split", help="of references that hold several")
    vqa = _command(tasks, "vqa", "Accuracy on VQAv2, OK-VQA and files like them.", _score_vqa)
    vqa.add_argument(
        "--questions", type=Path, required=True, help='{"questions": [{"question_id", "question"}]}'
    )
    vqa.add_argument(
        "--annotations",
        type=Path,
        required=True,
        help='{"annotations": [{"question_id", "answers", "answer_type", "question_type"}]}',
    )
    vqa.add_argument(
        "--predictions", type=Path, required=True, help='a JSON list of {"question_id", "answer"}'
    )
    vqa.add_argument(
        "--allow-missing",
        action="store_true",
        help="score only the questions that have a prediction; without it all annotated ones must "
        "have one, as for the official tool",
    )


def _score_captions(arguments: argparse.Namespace) -> int:
    from blip2ft.metrics import read_predictions, read_references, score_captions

    scores = score_captions(
        read_predictions(arguments.predictions),
        read_references(arguments.references, split=arguments.split),
    )
    for metric, reason in scores.unavailable.items():
        print(f"{metric} is left out: {reason}", file=sys.stderr)
    # the official tools know no exact match
    printed = {name: value for name, value in scores.scores.items() if name != "exact_match"}
    print(json.dumps(printed))
    return 0


def _score_vqa(arguments: argparse.Namespace) -> int:
    from blip2ft.metrics.vqa_files import read_vqa

    predictions, annotations, missing = read_vqa(
        arguments.questions,
        arguments.annotations,
        arguments.predictions,
        allow_missing=arguments.allow_missing,
    )
    from blip2ft.metrics.vqa_accuracy import vqa_accuracy

    scores = vqa_accuracy(
        list(predictions.values()),
        [annotation.answers for annotation in annotations.values()],
        [annotation.answer_type for annotation in annotations.values()],
        [annotation.question_type for annotation in annotations.values()],
    )
    if missing:
        print(f"{missing} annotated questions have no prediction; not scored", file=sys.stderr)
    print(json.dumps(scores, ensure_ascii=False))
    return 0


def _add_export(commands: Any) -> None:
    parser = _command(
        commands, "export", "Merge a run into a model that stock transformers loads.", _export
    )
    parser.add_argument("run_folder", type=Path, metavar="RUN", help="the --output of a run")
    parser.add_argument("--out", type=Path, required=True, help="folder to write, not yet in use")
    parser.add_argument("--dtype", choices=["fp32", "bf16"], default="fp32", help="of the weights")
    parser.add_argument("--base", help="where the base model is now, if it moved")
    parser.add_argument("--tolerance", type=float, help="largest relative difference of a logit")


def _export(arguments: argparse.Namespace) -> int:
    if arguments.base:
        check_model_name(arguments.base)
    quiet_libraries()
    from blip2ft.export import export_run

    report = export_run(
        arguments.run_folder,
        arguments.out,
        dtype=arguments.dtype,
        base=arguments.base,
        tolerance=arguments.tolerance,
    )
    print(
        f"{arguments.out}: stock transformers loads it; its logits differ from the unmerged "
        f"model's by at most {report['max_difference']:.2g} (largest logit "
        f"{report['largest_logit']:.3g})"
    )
    return 0


def _add_convert(commands: Any) -> None:
    parser = _command(
        commands,
        "convert",
        "Turn a checkpoint of the original (LAVIS) into a transformers folder, or back.",
        _convert,
    )
    parser.add_argument(
        "source", type=Path, metavar="SOURCE", help="lavis.pth, or a model's folder"
    )
    parser.add_argument("out", type=Path, metavar="OUT", help="folder or file, not yet in use")
    parser.add_argument("--to", choices=["transformers", "lavis"], default="transformers")
    parser.add_argument(
        "--config",
        metavar="DIR_OR_ID",
        help="to transformers: where config.json is; for stage 1 with BERT's tokenizer",
    )
    parser.add_argument(
        "--language-model",
        metavar="DIR_OR_ID",
        help="to transformers: the OPT or FlanT5 of a captioning checkpoint",
    )
    parser.add_argument(
        "--with-language-model",
        action="store_true",
        help="to lavis: write the language model too, such as one that was trained",
    )
    parser.add_argument(
        "--allow-partial",
        action="store_true",
        help="go on where tensors are missing (they start from random numbers, or are left out), "
        "unexpected or misshapen",
    )


def _convert(arguments: argparse.Namespace) -> int:
    back = arguments.to == "lavis"
    if back and (arguments.config or arguments.language_model):
        raise ValueError(
            "--to lavis reads the folder's own config and language model; leave --config and "
            "--language-model out"
        )
    if arguments.with_language_model and not back:
        raise ValueError(
            "--with-language-model goes with --to lavis; did you mean --language-model?"
        )
    if not back and not arguments.config:
        raise ValueError(
            "pass --config DIR_OR_ID with the model's config.json, as numbers of attention heads "
            "can't be read off the tensors: Salesforce/blip2-itm-vit-g has that of stage 1 with "
            "ViT-g, Salesforce/blip2-opt-2.7b and blip2-flan-t5-xl those of captioning"
        )
    quiet_libraries()
    from blip2ft.convert import to_checkpoint, to_folder

    if back:
        done = to_checkpoint(
            arguments.source,
            arguments.out,
            with_language_model=arguments.with_language_model,
            allow_partial=arguments.allow_partial,
        )
    else:
        done = to_folder(
            arguments.source,
            arguments.out,
            config=arguments.config,
            language_model=arguments.language_model,
            allow_partial=arguments.allow_partial,
        )
    reader = "the original" if back else "stock transformers"
    counts = [f"{done.written} tensors"]
    counts += [f"{len(done.new)} of them random, listed above"] if done.new else []
    counts += [f"{len(done.missing)} missing"] if done.missing else []
    counts += [f"{len(done.unused)} of the source unused"] if done.unused else []
    print(f"{arguments.out}: {reader} loads it; {', '.join(counts)}")
    return 0


def _add_inspect(commands: Any) -> None:
    parser = _command(commands, "inspect", "Show the parts of a model or a run.", _inspect)
    parser.add_argument("model", metavar="MODEL_OR_RUN", help="hub id, folder, or run")
    parser.add_argument("--revision", help="branch, tag or commit of a hub model")


def _inspect(arguments: argparse.Namespace) -> int:
    check_model_name(arguments.model)
    quiet_libraries()
    from blip2ft.inspection import describe

    print(describe(arguments.model, revision=arguments.revision))
    return 0


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} isn't a whole number above 0")
    return int(text)


def quiet_libraries() -> None:
    """Our own log lines on standard error; of the libraries' chatter only what matters."""
    import logging
    import os

    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    if not sys.stderr.isatty():
        # read by tqdm when it is imported: a file gets a line now and then, not one a step
        os.environ.setdefault("TQDM_MININTERVAL", "60")
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    logging.getLogger("blip2ft").setLevel(logging.INFO)
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    quiet_retries()
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
