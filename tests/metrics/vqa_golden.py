"""Questions and what the official tool makes of them: VQAEval of GT-Vision-Lab/VQA at a013f00."""

# prediction, annotators' answers, types of answer and question, accuracy
ROWS = [
    ("yes.", ["yes"] * 10, "yes/no", "is the", 0.0),
    ("Yes.", ["yes"] * 9 + ["Yes, it is"], "yes/no", "is the", 100.0),
    ("the two", ["2"] * 3 + ["two"] * 2 + ["3"] * 5, "number", "how many", 100.0),
    ("1000", ["1,000"] * 2 + ["1000"] + ["many"] * 7, "number", "how many", 90.0),
    ("dont walk", ["don't walk"] * 2 + ["walk"] * 7 + ["Dont walk!"], "other", "what does", 90.0),
    ("t-shirt\n", ["t shirt", "T-shirt"] + ["shirt"] * 8, "other", "what is the", 60.0),
    ("a", ["", "A"] + ["b"] * 8, "other", "what is the", 60.0),
    ("café", ["CafÉ "] * 4 + ["bar"] * 6, "other", "what is the", 100.0),
    ("two", ["two\t"] * 10, "number", "how many", 100.0),
    ("", ["none"] * 9 + ["0"], "number", "how many", 0.0),
]
OFFICIAL = {
    "overall": 70.0,
    "perAnswerType": {"yes/no": 50.0, "number": 72.5, "other": 77.5},
    "perQuestionType": {"is the": 50.0, "how many": 72.5, "what does": 90.0, "what is the": 73.33},
}
