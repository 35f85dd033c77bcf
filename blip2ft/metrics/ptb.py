# ruff: noqa: RUF001, SIM905 - quotes and dashes are the subject; word lists read better as text
r"""Penn Treebank tokens as the COCO caption scorers make them, without Java.

The official scores are computed over the output of the Stanford PTBTokenizer (CoreNLP 3.4.1,
options `-preserveLines -lowerCase`), from which a list of punctuation marks is then removed. This
module is written from the Treebank conventions and from observing what that program makes of probe
texts. It is a longest-match lexer: every rule is tried at each position, the longest match is
taken, and among equal ones the first rule.

Quirks of the original that are kept, because scores depend on them: brackets stay, as `-lrb-`,
because the list of marks to remove is upper case; runs such as `!!` and `?!` stay; single letters
keep their stop (`plan b.`); two words joined by a stop or comma without a space can be one token;
a fraction or telephone number that holds spaces is one token, written with no-break spaces;
characters outside the Basic Multilingual Plane (most emoji) vanish.

Compared with that program, text by text: 0 of 757 COCO captions differ; 0 of 36,000 captions with
odd punctuation, quotes, numbers, addresses and Unicode mixed in; 10 of 37,000 lines of technical
prose on first sight (0.03 %, of one cause, since mended); 13 of 20,000 lines of random characters
(0.07 %). Known gaps: an abbreviation joined to one letter (`conn.c`), some addresses with a hyphen
or an underscore, a digit, backtick or hyphen after an inner apostrophe, combining marks right after
a digit, about 60 rare modifier letters and signs. The program reads across line ends, so what it
makes of a last word can depend on the next caption (`plan A.` before `The`); here a text is always
read alone, as if another line followed.

Source: Marcus et al. 1993 (the Treebank); pycocoevalcap 1.2, tokenizer/ptbtokenizer.py (the marks).
"""

from collections.abc import Iterator
from functools import lru_cache

import regex

from blip2ft.metrics.ptb_characters import (
    BRACKETS,
    ENTITIES,
    HYPHENS,
    QUOTES,
    WRITTEN,
    is_dropped,
    read,
)

MARKS = frozenset("'' ' `` ` -LRB- -RRB- -LCB- -RCB- . ? ! , : - -- ... ;".split())

# Letters and digits; combining marks count as letters.
_L = r"[\p{L}\p{M}]"
_D = r"\p{Nd}"
_W = rf"[\p{{L}}\p{{M}}\p{{Nd}}{HYPHENS}]"
_APOS = r"['’]"
_OPEN_APOS = r"['’‘`]"
_NUMBER = rf"[-+]?(?:{_D}*(?:[.:,]{_D}+)+|{_D}+)"

_TITLES = (
    "ph[.]d adj adm adv alex asst atty ave brig capt cf cie cmdr col cpl dept det dr drs elec ens "
    "ft gen gov govs hon insp invt jos lt maj messrs mlle mme mr mrs ms msgr mt natl pfc ph pres "
    "prof pvt rep reps rev sen sens sfc sgt spc st ste supt vs wm mfg mtg "
    "al ala apr ariz assn aug bhd bldg blvd bros co colo conn corp cos ct dak dec esq est etc ext "
    "feb fla fri ga inc ind intl jan jr jul jun kan kans ky ltd mar md mich minn mo mon mont neb "
    "nev nov oct okla penn plc rd rt sep sept seq sq sr sys tel tenn thu tue tues univ va vt wed "
    "wis wisc wyo ppte ppty pte ptes pty ptys"
).split()
_PROPER = "ark az del ill la mass miss ore pa tex wash".split()  # only with a capital
_BEFORE_NUMBER = "art ca fig figs no nos op pp prop".split()
_FILES = (
    "3gp bat bmp c cgi class cpp dll docx? exe gif gz h html? jar java jpe?g mov mp[34] pdf php pl "
    "png pptx? ps py sql tar txt wav wm[va] x xlsx? xml zip"
).split()
_STARTERS = (
    "a about according additionally after an as at but earlier he her here however if in it last "
    "many more now once one other our she since so some such that the their then there these they "
    "this we what when while yet you"
).split()
_CAPITALISED = "|".join(f"{w.capitalize()}|{w.upper()}" for w in _PROPER)
_ABBREVIATION = rf"(?:(?i:{'|'.join(_TITLES)})|{_CAPITALISED})\."
_ACRONYM = r"[A-Za-z](?:\.[A-Za-z])+\."
_AT_START = "|".join(f"{w.capitalize()}|{w.upper()}" for w in _STARTERS)

_CLITIC = rf"{_APOS}(?i:s|m|d|ll|re|ve)"
_ELISION = rf"(?:[dDlLoO]{_APOS})?"
_SEGMENT = rf"(?:{_ACRONYM}|{_W}+(?:_{_W}+)*)"
_URL = r"[^\s\"<>|.!?(){},@/:\['`_]++"

_NAME = r"[A-Za-z][A-Za-z0-9_:.-]*"
_VALUE = r"(?:\"[^\"]*\"|'[^']*'|[A-Za-z]+)"
_TAG = rf"<(?:[!?][A-Za-z-][^>]*|/?{_NAME}(?: +{_NAME}(?: *= *{_VALUE})?)* */?) *>"

# Each rule: a pattern matched at a position. Group "t" where given is the token and the rest of the
# match context that counts for the length; groups "a" and "b" are two tokens.
_RULES = [
    # markup and addresses
    _TAG,
    r"(?i:https?)://[^\s\"<>|()]+[^\s\"<>|.!?(){},-]",
    rf"(?:(?:www\.(?:{_URL}\.)+[A-Za-z]{{2,4}})|(?:{_URL}\.)+(?:com|net|org|edu))"
    r"(?:/[^\s\"<>|()]+[^\s\"<>|.!?(){},-])?",
    r"<?[A-Za-z0-9][^\s\"<>|(){}]*@(?:[^\s\"<>|(){}.]+\.)*[^\s\"<>|(){}.]+>?",
    r"@[A-Za-z_][A-Za-z_0-9]*",
    rf"\#{_L}+",
    # words
    r"(?P<a>(?i:can))(?P<b>(?i:not))",
    r"(?P<a>(?i:gon|wan))(?P<b>(?i:na))",
    r"(?P<a>(?i:got))(?P<b>(?i:ta))",
    r"(?P<a>(?i:lem|gim))(?P<b>(?i:me))",
    r"(?P<a>'[tT])(?P<b>(?i:is|was))",
    rf"(?P<t>{_L}{_W}*){_CLITIC}(?![A-Za-z])",
    rf"(?P<t>{_L}{_W}*?)(?<![nN\d])[nN]['’‘`][tT]",
    rf"[nN]['’‘`][tT](?!{_L})",
    rf"(?P<t>{_CLITIC})(?![A-Za-z])",
    r"’(?i:s|m|d|ll|re|ve)",
    rf"(?P<t>[yY]{_APOS}){_L}",
    # with an apostrophe inside: O'Brien, l'eau, ma'am, but not it's
    rf"[A-HJ-XZdlno]{_OPEN_APOS}{_L}{{2,}}",
    rf"[dDlLoO]{_OPEN_APOS}[A-Za-z0-9]{{2,}}",
    rf"c{_APOS}est|e{_APOS}er",
    rf"{_L}+[aeiouyAEIOUY]{_OPEN_APOS}[aeiouA-Z]{_L}*",
    rf"(?i:[dlj]{_APOS}|ol{_APOS}|li{_APOS}l|nat{_APOS}l|cap{_APOS}n)",
    rf"{_APOS}(?i:em|till?|cause|n{_APOS}|n(?=\s|$))|’[nN]",
    rf"(?P<t>{_APOS}{_D}0[sS])",
    rf"(?P<t>{_APOS}{_D}{_D})(?:\s|$)",
    rf"{_W}+(?:_{_W}+)*",
    rf"{_L}{_W}*(?:[.!?]{_L}{_W}*)+",
    rf"{_W}+(?:_{_W}+)*(?:-{_SEGMENT})+",
    rf"{_ELISION}[A-Za-z0-9][A-Za-z0-9.,]*(?:-(?:{_ACRONYM}|{_ELISION}[A-Za-z0-9]+))+",
    r"[A-Za-z0-9]+(?:-[A-Za-z]+){0,2}(?:\\?/[A-Za-z0-9]+(?:-[A-Za-z]+){0,2}){1,2}",
    r"[A-Z]+(?:(?:&(?i:amp);|[&+])[A-Z]+)+",
    r"[cCfF]\#|[cC]\+\+",
    # abbreviations
    _ABBREVIATION,
    rf"(?P<t>(?i:{'|'.join(_BEFORE_NUMBER)})\.)\s?{_D}",
    _ACRONYM,
    # a file's name; a full acronym of the same length comes first
    rf"(?P<t>{_W}+(?:\.{_W}+)*\.(?i:{'|'.join(_FILES)}))(?:[\s,.!?]|$)",
    rf"(?P<t>{_W}(?:{_W}|[.!?](?={_L})|[_-](?={_W}))*\.)[,;:、]",
    r"[A-Za-z]\.",
    rf"(?P<t>[A-Za-z])\.\s+(?:(?:{_AT_START})|{_TAG})(?:\s|$)",
    # numbers
    _NUMBER,
    rf"{_D}{{1,4}}[- \u00a0]{_D}{{1,4}}\\?/{_D}{{1,4}}",
    rf"{_D}{{1,2}}[-/]{_D}{{1,2}}[-/]{_D}{{2,4}}",
    r"(?:\([0-9]{2,3}\)[ \u00a0]?|\+{0,2}(?:[0-9]{2,4}[- \u00a0])?[0-9]{2,4}[- \u00a0])"
    r"[0-9]{3,4}[- \u00a0]?[0-9]{3,5}",
    r"(?:\+{0,2}[0-9]{2,4}\.)?[0-9]{2,4}\.[0-9]{3,4}\.[0-9]{3,5}",
    r"[A-Z]*\$",
    # faces
    r"(?P<t>[<>]?[:;=][-o*']?[()dDpPO\\|\[\]{@]|:[03])(?![A-Za-z0-9])",
    r"[-x^~<>=']_[-x^~<>=']|\([-x^~<>='][_.-]?[-x^~<>=']\)",
    # runs
    r"-+|_+|\*+|\.{3,}|\.(?:[ \u00a0]\.){2,}|[!?]+|\#+|@+|<<|>>|``|''|\\\*",
    r"[‘’“”‹›«»„‚‛‟`]{1,2}|-(?i:[lr][rcs]b)-",
    r"&(?i:amp|lt|gt|quot|apos|mdash|ndash|nbsp);|&\#[0-9]+;|&[aAeEiIoOuU](?:acute|grave|uml);",
]
_COMPILED = [regex.compile(rule) for rule in _RULES]
_PLAIN = regex.compile(r"[a-z]++(?=[ ]|$)")
_SPLIT = frozenset("cannot gonna wanna gotta lemme gimme".split())

_CLITIC_ALONE = regex.compile(_CLITIC)
_NEGATION = regex.compile("[nN]['’‘`][tT]")
_ENTITY = regex.compile("&(?i:amp|lt|gt|quot|apos|mdash|ndash|nbsp);")

# No token is longer: bounds the time a rule can take, so that long texts take linear time.
_LONGEST = 512


def tokenize(text: str) -> list[str]:
    """Lower-cased tokens of one caption, punctuation marks removed.

    Args:
        text: Any text; line ends count as spaces. A text is read as a line with others after it.

    Returns:
        Tokens in order; empty for an empty text or one of punctuation alone.
    """
    return list(_cached(text))


def words(text: str) -> list[str]:
    """The tokens as BLEU and CIDEr see them: split again at no-break spaces."""
    return " ".join(_cached(text)).split()


# The metrics of one evaluation read the same captions one after the other.
@lru_cache(maxsize=1 << 16)
def _cached(text: str) -> tuple[str, ...]:
    text = read(text)
    lowered = (token.lower() for token in _tokens(text))
    return tuple(token for token in lowered if token not in MARKS)


def _tokens(text: str) -> Iterator[str]:
    position = 0
    while position < len(text):
        plain = _PLAIN.match(text, position)
        if plain and plain[0] not in _SPLIT:
            yield plain[0]
            position = plain.end()
        elif text[position].isspace():
            position += 1
        else:
            end, tokens = _longest(text, position)
            yield from tokens
            position = end


def _longest(text: str, start: int) -> tuple[int, list[str]]:
    """End and tokens of the longest match at `start`; no token for a character that vanishes."""
    matches = [match for rule in _COMPILED if (match := rule.match(text, start, start + _LONGEST))]
    if not matches:
        return start + 1, _character(text[start])
    longest = max(matches, key=lambda match: match.end())  # the first of equals
    groups = longest.groupdict()
    if "a" in groups:
        return longest.end(), [groups["a"], groups["b"]]
    group = "t" if "t" in groups and groups["t"] is not None else 0
    token = _written(longest[group])
    return longest.end(group), [token] if token else []


def _character(character: str) -> list[str]:
    if is_dropped(character):
        return []
    return [character.translate(BRACKETS).translate(WRITTEN)]


def _written(token: str) -> str:
    """A token as the Treebank writes it."""
    if not token.strip(HYPHENS):
        return ""
    if token[0] in QUOTES and all(character in QUOTES for character in token):
        return token.translate(WRITTEN)
    if token[0] == "<":
        return token.replace(" ", "\xa0")
    if _ENTITY.search(token):
        return _ENTITY.sub(lambda match: ENTITIES[match[0].lower()], token)
    if set(token) == {"-"} and 2 <= len(token) <= 4:
        return "--"
    if set(token) <= set(". \xa0") and len(token) > 2:
        return "..."
    if token[0] == "’" and _CLITIC_ALONE.fullmatch(token):
        return "'" + token[1:]
    if _NEGATION.fullmatch(token):
        return token.replace("’", "'").replace("‘", "`")
    # of faces and telephone numbers; other brackets stay as they are inside a token
    token = token.replace("(", BRACKETS[ord("(")]).replace(")", BRACKETS[ord(")")])
    return token.replace(" ", "\xa0")
