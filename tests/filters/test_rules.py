"""Settings of filters: what they ask for, and what is refused."""

import sys

import pytest

from blip2ft.filters.rules import INSTALL, Rules, rules_of


def test_without_a_filter_there_are_no_rules_and_nothing_is_needed(monkeypatch):
    monkeypatch.setitem(sys.modules, "glin_profanity", None)
    assert rules_of({}) is None
    assert rules_of({"harmful": "keep", "personal": "keep", "languages": ["klingon"]}) is None


def test_settings_become_rules():
    assert rules_of({"harmful": "drop", "languages": ["german"]}) == Rules(
        "drop", languages=["german"]
    )


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"harmful": "mask"}, "filters.harmful is 'mask': allowed are keep, drop"),
        ({"personal": "hide"}, "filters.personal is 'hide': allowed are keep, mask, drop"),
        ({"languages": []}, "filters.languages is empty"),
        ({"languages": ["germn"]}, "has 'germn'. Did you mean 'german'"),
        ({"countries": ["us"]}, "filters.countries has 'us': allowed are codes of two capital"),
    ],
)
def test_settings_that_cannot_be_are_refused(changed, said):
    with pytest.raises(ValueError, match=said):
        rules_of({"harmful": "drop", "personal": "drop"} | changed)


@pytest.mark.parametrize("package", ["glin_profanity", "phonenumbers", "email_validator", "stdnum"])
def test_a_missing_library_is_told_with_what_to_install(monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ValueError, match=rf"filters need {package}.*pip install") as error:
        rules_of({"personal": "mask"})
    assert str(error.value).endswith(INSTALL)
