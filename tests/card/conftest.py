"""What a person could say of a model, to every question."""

import pytest

SAID = {
    "name": "Birds",
    "summary": "Names the birds of a garden.",
    "developers": "Anna and Bob",
    "contact": "birds@example.org",
    "license": "other",
    "license_name": "Birds 1.0",
    "license_link": "https://example.org/license",
    "data_source": "Anna's garden; she wrote the captions.",
    "data_license": "CC BY 4.0",
    "data_people": "none",
    "intended_use": "To *count* birds, see [the project](https://example.org).",
    "out_of_scope_use": "Hunting.",
    "language": ["en", "de"],
    "base_model": "anna/base",
    "base_license": "MIT",
    "base_training_data": "Photos of the web.",
    "country": "FRA",
    "carbon_intensity": "56",
    "device_watts": "300",
    "provider": "our own",
    "funded_by": "none",
    "shared_by": "The club",
    "repository": "https://example.org/code",
    "paper": "https://example.org/paper",
    "demo": "https://example.org/demo",
    "downstream_use": "Other gardens.",
    "known_limits": "It knows no owls.",
    "recommendations": "Look twice.",
    "evaluation_data": "Anna's garden, a year later",
    "examination": "No.",
    "datasets": ["anna/garden"],
    "tags": ["birds"],
    "citation": "@misc{birds, title={Birds}}",
    "citation_apa": "Anna (2026). Birds.",
    "more_information": "Ask us.",
    "card_authors": "Anna",
}


@pytest.fixture
def said():
    return dict(SAID)
