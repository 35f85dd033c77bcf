import json

import pytest

from blip2ft.metrics import read_predictions, read_references


@pytest.fixture
def write(tmp_path):
    def write(text, name="captions.jsonl"):
        path = tmp_path / name
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return write


def test_predictions_are_read_by_line(write):
    path = write('{"image_id": 1, "caption": "a dog"}\r\n\n{"image_id": "x", "caption": ""}')
    assert read_predictions(path) == {1: "a dog", "x": ""}


def test_references_of_an_image_are_joined(write):
    lines = [
        {"image_id": 1, "captions": ["a", "b"]},
        {"image_id": 2, "caption": "c"},
        {"image_id": 1, "caption": "d"},
    ]
    path = write("\n".join(map(json.dumps, lines)))
    assert read_references(path) == {1: ["a", "b", "d"], 2: ["c"]}


def test_one_line_and_a_byte_order_mark_are_fine(write):
    path = write('\ufeff{"image_id": 1, "caption": "日本 😀"}')
    assert read_predictions(path) == {1: "日本 😀"}


def test_coco_results_are_read(write):
    path = write(json.dumps([{"image_id": 1, "caption": "a"}, {"image_id": 2, "caption": "b"}]))
    assert read_predictions(path) == {1: "a", 2: "b"}


def test_coco_annotations_are_read(write):
    entries = [{"image_id": 1, "id": 7, "caption": "a"}, {"image_id": 1, "id": 8, "caption": "b"}]
    path = write(json.dumps({"images": [], "annotations": entries}, indent=1))
    assert read_references(path) == {1: ["a", "b"]}


def test_a_caption_that_says_annotations_is_no_coco_file(write):
    path = write('{"image_id": 1, "caption": "the word \\"annotations\\""}')
    assert read_predictions(path) == {1: 'the word "annotations"'}


@pytest.mark.parametrize("read", [read_predictions, read_references])
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"holds no captions"),
        ("\n \n", r"holds no captions"),
        ("[]", r"holds no captions"),
        ('{"annotations": []}', r"holds no captions"),
        ('\n{"image_id": 1,}', r"captions\.jsonl:2: not valid JSON"),
        ('{"image_id": 1, "caption": "a"}\n{', r"captions\.jsonl:2: not valid JSON"),
        ('[{"image_id": 1},\n{]', r"captions\.jsonl:2: not valid JSON"),
        ("3", r"captions\.jsonl:1: 3 is not a JSON object"),
        ("[3]", r"captions\.jsonl: entry 1: 3 is not a JSON object"),
        ('{"annotations": {"a": 1}}', r"'annotations' is .*must be a list"),
        ('{"annotations": [1]}', r"annotation 1: 1 is not a JSON object"),
        ('{"caption": "a"}', r"captions\.jsonl:1: no key 'image_id'; keys are \['caption'\]"),
        ('{"image_id": 1, "text": "a"}', r"captions\.jsonl:1: no key .*'caption'"),
        ('[{"image_id": 1, "text": "a"}]', r"entry 1: no key .*'caption'"),
        ('{"image_id": 1, "caption": null}', r":1: 'caption' is null\. It must be a string"),
        ('{"image_id": 1.5, "caption": "a"}', r":1: 'image_id' is 1\.5\. It must be an integer"),
        ('{"image_id": true, "caption": "a"}', r":1: 'image_id' is true"),
        (b'{"image_id": 1, "caption": "\xff"}', r"not UTF-8 text"),
    ],
)
def test_what_is_wrong_is_named_with_its_place(write, read, text, message):
    with pytest.raises(ValueError, match=message):
        read(write(text))


def test_an_image_predicted_twice_is_named_with_both_lines(write):
    line = '{"image_id": 1, "caption": "a"}\n'
    with pytest.raises(ValueError, match=r":3: image_id 1 is already at .*:1\. .*remove one"):
        read_predictions(write(line + '{"image_id": 2, "caption": "a"}\n' + line))


@pytest.mark.parametrize("captions", ['"a"', "[1]", "null"])
def test_captions_that_are_no_list_of_strings_are_refused(write, captions):
    with pytest.raises(ValueError, match=r":1: 'captions' is .*must be a list of strings"):
        read_references(write(f'{{"image_id": 1, "captions": {captions}}}'))


def test_an_empty_list_of_captions_is_refused(write):
    with pytest.raises(ValueError, match=r":1: 'captions' is empty"):
        read_references(write('{"image_id": 1, "captions": []}'))


@pytest.mark.parametrize("read", [read_predictions, read_references])
def test_a_missing_file_is_named(tmp_path, read):
    with pytest.raises(ValueError, match=r"none\.jsonl: no such file or folder"):
        read(tmp_path / "none.jsonl")


def test_a_folder_holds_no_predictions(tmp_path):
    with pytest.raises(ValueError, match=r"a folder, not a file\. Give the file in it"):
        read_predictions(tmp_path)


def test_references_may_be_a_table_of_images(write):
    path = write("image,caption\na.jpg,one\nb/c.jpg,two\na.jpg,uno\n", "captions.csv")
    assert read_references(path) == {"a.jpg": ["one", "uno"], "b/c.jpg": ["two"]}
    rows = [{"image": "a.jpg", "caption": "one"}, {"image": "a.jpg", "caption": "uno"}]
    path = write("\n".join(map(json.dumps, rows)))
    assert read_references(path) == {"a.jpg": ["one", "uno"]}
    rows = [{"image": "a.jpg", "image_id": 7, "captions": ["one", "uno"]}]
    assert read_references(write(json.dumps(rows), "list.json")) == {7: ["one", "uno"]}


def test_references_of_one_split_are_read(write):
    path = write("image,caption,split\na.jpg,one,test\nb.jpg,two,train\n", "captions.csv")
    assert read_references(path, split="test") == {"a.jpg": ["one"]}


def test_references_may_be_karpathys(write):
    sentences = [{"raw": "one"}, {"raw": "two"}]
    image = {"filename": "a.jpg", "cocoid": 5, "split": "test", "sentences": sentences}
    path = write(json.dumps({"images": [image], "dataset": "coco"}), "dataset.json")
    assert list(read_references(path, split="test").values()) == [["one", "two"]]
