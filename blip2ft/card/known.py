"""What is known of the models that a run may begin with: licences, data and risks, with sources."""

from dataclasses import dataclass

MIT_OF_THE_HUB = "MIT, as their page on the hub says"
WEB_DATA = (
    "BLIP-2 was pre-trained on 129 million images with texts ([paper]"
    "(https://arxiv.org/abs/2301.12597), section 3.4): COCO, Visual Genome, CC3M, CC12M, SBU and "
    "115 million of LAION-400M, with captions that a BLIP model wrote and filtered"
)
WEB_RISKS = (
    "Most of the base's images and texts were collected from the web without a person looking at "
    "them. LAION-400M has been found to hold pornography, and texts that demean people by sex and "
    "origin ([Birhane et al. 2021](https://arxiv.org/abs/2110.01963)); such associations may come "
    "back in what this model says of people. The base's own page asks not to put it to use "
    "directly, without looking into its safety and fairness where it is to be used."
)


@dataclass(frozen=True)
class LanguageModel:
    """name, license, risks: in words, with their sources."""

    name: str
    license: str
    risks: str


OPT = LanguageModel(
    name="OPT",
    license=(
        "its language model is Meta's OPT, whose own licence, the [OPT-175B licence agreement]"
        "(https://github.com/facebookresearch/metaseq/blob/main/projects/OPT/MODEL_LICENSE.md), "
        "allows research alone and no commercial use, and covers all sizes of OPT ([its authors]"
        "(https://github.com/facebookresearch/metaseq/issues/611)). The authors of BLIP-2 say that "
        "the licence of the language model has to be followed too ([issue 454]"
        "(https://github.com/salesforce/LAVIS/issues/454)). Have it checked before other use"
    ),
    risks=(
        "The language model is OPT. Its authors found that it tends to toxic language and to "
        "stereotypes, even after a harmless prompt, and that it makes things up ([Zhang et al. "
        "2022](https://arxiv.org/abs/2205.01068), sections 4 and 5). It was trained on text of the "
        "web, conversations on Reddit among it, which was hardly filtered."
    ),
)
FLAN_T5 = LanguageModel(
    name="FlanT5",
    license=(
        "its language model is Google's [FlanT5](https://huggingface.co/google/flan-t5-xl), which "
        "is under Apache-2.0"
    ),
    risks=(
        "The language model is FlanT5, tuned on text that was neither filtered for explicit "
        "content nor examined for bias, and not tested in use, as its authors say "
        "([Chung et al. 2022](https://arxiv.org/abs/2210.11416); [its page]"
        "(https://huggingface.co/google/flan-t5-xl))."
    ),
)


@dataclass(frozen=True)
class KnownBase:
    """language: None where the model writes no text."""

    license: str
    language: LanguageModel | None


_OPT_BASE = KnownBase(MIT_OF_THE_HUB, OPT)
_T5_BASE = KnownBase(MIT_OF_THE_HUB, FLAN_T5)
_FINDER = KnownBase(MIT_OF_THE_HUB, None)
BASES = {
    "Salesforce/blip2-opt-2.7b": _OPT_BASE,
    "Salesforce/blip2-opt-2.7b-coco": _OPT_BASE,
    "Salesforce/blip2-opt-6.7b": _OPT_BASE,
    "Salesforce/blip2-opt-6.7b-coco": _OPT_BASE,
    "Salesforce/blip2-flan-t5-xl": _T5_BASE,
    "Salesforce/blip2-flan-t5-xl-coco": _T5_BASE,
    "Salesforce/blip2-flan-t5-xxl": _T5_BASE,
    "Salesforce/blip2-itm-vit-g": _FINDER,
    "Salesforce/blip2-itm-vit-g-coco": _FINDER,
}
BLIP2_BIBTEX = """\
@inproceedings{li2023blip2,
  title = {{BLIP-2}: Bootstrapping Language-Image Pre-training with Frozen Image Encoders and
           Large Language Models},
  author = {Li, Junnan and Li, Dongxu and Savarese, Silvio and Hoi, Steven},
  booktitle = {International Conference on Machine Learning},
  year = {2023},
  eprint = {2301.12597},
  archivePrefix = {arXiv}
}"""
BLIP2_APA = (
    "Li, J., Li, D., Savarese, S., & Hoi, S. (2023). BLIP-2: Bootstrapping language-image "
    "pre-training with frozen image encoders and large language models. International Conference "
    "on Machine Learning. arXiv:2301.12597"
)
OPT_BIBTEX = """\
@misc{zhang2022opt,
  title = {{OPT}: Open Pre-trained Transformer Language Models},
  author = {Zhang, Susan and Roller, Stephen and Goyal, Naman and others},
  year = {2022},
  eprint = {2205.01068},
  archivePrefix = {arXiv}
}"""
FLAN_BIBTEX = """\
@misc{chung2022scaling,
  title = {Scaling Instruction-Finetuned Language Models},
  author = {Chung, Hyung Won and Hou, Le and Longpre, Shayne and others},
  year = {2022},
  eprint = {2210.11416},
  archivePrefix = {arXiv}
}"""
