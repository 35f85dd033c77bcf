"""What the `evaluate` modules of captions say of themselves."""

import datasets
import evaluate


def caption_info(description: str, citation: str) -> evaluate.MetricInfo:
    """Of a metric that compares each caption with its references."""
    text = datasets.Value("string")
    return evaluate.MetricInfo(
        description=description,
        citation=citation,
        inputs_description="predictions: strings; references: lists of strings",
        features=datasets.Features({"predictions": text, "references": datasets.Sequence(text)}),
    )
