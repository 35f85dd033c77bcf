"""Answers as the official VQA evaluation compares them.

The rules: https://visualqa.org/evaluation. What that page leaves open follows the code beside it,
GT-Vision-Lab/VQA at a013f00, PythonEvaluationTools/vqaEvaluation/vqaEval.py:

- A punctuation mark becomes a space, but vanishes where it touches a space anywhere in the answer
  ("red, blue, green" has both), and all of them do where a comma stands between two digits: "1,000"
  is "1000" and "1,000-2,000" is "10002000". Apostrophes and colons stay.
- A stop goes unless a digit follows: "yes.", "2." and "u.s." lose theirs, "2.5" and "no.5" don't.
  Of more than 32 stops the later ones stay; the code passes a regex flag as a count.
- Number words end at ten, and "none" is 0. Articles go even where nothing else is left: "a" is "".
- Of the contractions, "somebody'd" loses its apostrophe instead of getting one, and those with a
  capital (Im, Ive) are never found, as they are looked up in lower case.
"""

import re
from functools import lru_cache

PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
COMMA_IN_NUMBER = re.compile(r"\d,\d")
STOP = re.compile(r"\.(?!\d)")
STOPS_AT_MOST = 32
ARTICLES = ("a", "an", "the")
NUMBER_WORDS = "zero one two three four five six seven eight nine ten"
NUMBERS = {word: str(number) for number, word in enumerate(NUMBER_WORDS.split())} | {"none": "0"}
# the code lists each beside its wrong spellings, which lack exactly one of the apostrophes
SPELLINGS = """
    ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't
    haven't he'd he'd've he's how'd how'll how's isn't it'd it'd've it'll ma'am mightn't
    mightn't've might've mustn't must've needn't not've o'clock oughtn't 'ow's'at shan't she'd've
    should've shouldn't shouldn't've somebody'd've somebody'll somebody's someone'd someone'd've
    someone'll someone's something'd something'd've something'll that's there'd there'd've
    there're there's they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't
    what'll what're what's what've when's where'd where's where've who'd who'd've who'll who's
    who've why'll why're why's won't would've wouldn't wouldn't've y'all y'all'll y'all'd've you'd
    you'd've you'll you're you've
"""
CONTRACTIONS = {
    word[:i] + word[i + 1 :]: word
    for word in SPELLINGS.split()
    for i, letter in enumerate(word)
    if letter == "'"
} | {"somebody'd": "somebodyd"}


def trim(answer: str) -> str:
    """The answer without white space around it, on one line and without tabs."""
    return answer.translate({ord("\n"): " ", ord("\t"): " "}).strip()


@lru_cache(maxsize=100_000)
def normalize(answer: str) -> str:
    """An answer of a model or an annotator in the form in which the two are compared; may be ""."""
    words = (NUMBERS.get(word, word) for word in _plain(trim(answer)).lower().split())
    return " ".join(CONTRACTIONS.get(word, word) for word in words if word not in ARTICLES)


def _plain(answer: str) -> str:
    """The answer without punctuation."""
    drop_all = COMMA_IN_NUMBER.search(answer) is not None
    replacement = {
        ord(mark): "" if drop_all or f"{mark} " in answer or f" {mark}" in answer else " "
        for mark in PUNCTUATION
    }
    return STOP.sub("", answer.translate(replacement), count=STOPS_AT_MOST)
