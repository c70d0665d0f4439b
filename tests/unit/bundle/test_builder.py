"""From an ONNX file and a recipe to a bundle: what is read, what is asked for, and that it is the same each time."""

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from lenskeep.bundle import builder, card, draft, exports, golden, recipe
from lenskeep.bundle.draft import Draft
from lenskeep.bundle.exports import Contract
from lenskeep.bundle.golden import Answer, Answers
from lenskeep.bundle.manifest import BoxesDecode, ClassifyDecode, YoloEndToEndDecode, YoloRawDecode
from lenskeep.bundle.onnxcheck import scan
from lenskeep.errors import BundleFormatError, LimitExceededError, ManifestError, RequestError
from tests import tinybundle

ULTRALYTICS = {
    "description": "Ultralytics YOLO11n model", "author": "Ultralytics", "version": "8.4.190",
    "license": "AGPL-3.0 License (https://ultralytics.com/license)", "stride": "32", "task": "detect", "batch": "1",
    "imgsz": "[640, 640]", "names": "{0: 'ok', 1: 'porosity', 2: 'crack'}", "channels": "3", "head": "Detect",
    "end2end": "False", "args": "{'batch': 1, 'nms': False, 'dynamic': False}",
}  # fmt: skip


def model(
    outputs: dict[str, list[Any]],
    *,
    inputs: dict[str, list[Any]] | None = None,
    metadata: dict[str, str] | None = None,
    dtype: int = TensorProto.FLOAT,
) -> bytes:
    """Make a model that has these inputs and outputs and computes nothing."""
    inputs = inputs or {"images": [1, 3, 640, 640]}
    zero = numpy_helper.from_array(np.zeros(1, np.float32), "zero")
    graph = helper.make_graph(
        [helper.make_node("Identity", ["zero"], [name]) for name in outputs],
        "shapes",
        [
            helper.make_tensor_value_info(n, dtype, shape)
            for n, shape in (inputs or {"images": [1, 3, 640, 640]}).items()
        ],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in outputs.items()],
        [zero],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    helper.set_model_props(made, metadata or {})
    return bytes(made.SerializeToString())


def contract(data: bytes, **said: Any) -> Contract:
    words = {"model": "m.onnx", "name": "weld-seam", "version": "1.0.0", **said}
    return exports.infer(scan(data), recipe.compose(words, None))


def detector(shape: list[Any], **changes: str | None) -> bytes:
    metadata = {key: value for key, value in {**ULTRALYTICS, **changes}.items() if value is not None}
    return model({"output0": shape}, metadata=metadata)


# --- what Ultralytics says about its exports ------------------------------------------------------------------------


def test_a_raw_ultralytics_detector_needs_no_word() -> None:
    made = contract(detector([1, 7, 8400]))
    assert isinstance(made.decode, YoloRawDecode)
    assert (made.task, made.labels) == ("detect", ["ok", "porosity", "crack"])
    assert (made.input.resize.mode, made.input.resize.kernel, made.input.resize.pad_value) == (
        "letterbox",
        "linear",
        114,
    )
    assert made.input.scale == 1 / 255
    assert made.notes["labels"] == "metadata names"
    assert "end2end=False" in made.notes["decode"]


def test_an_end_to_end_ultralytics_detector_is_told_by_its_metadata() -> None:
    made = contract(detector([1, 300, 6], end2end="True"))
    assert isinstance(made.decode, YoloEndToEndDecode)


def test_an_export_with_nms_inside_is_end_to_end() -> None:
    made = contract(detector([1, 300, 6], end2end=None, args="{'nms': True}"))
    assert isinstance(made.decode, YoloEndToEndDecode)


def test_an_older_raw_export_is_told_by_its_shape() -> None:
    made = contract(detector([1, 7, 8400], end2end=None, head=None, args=None))
    assert isinstance(made.decode, YoloRawDecode)


def test_an_older_export_of_six_numbers_could_be_two_things_and_is_asked_about() -> None:
    old = detector([1, 300, 6], end2end=None, head=None, args=None)
    with pytest.raises(RequestError, match="--decode"):
        contract(old)
    assert isinstance(contract(old, decode="yolo-end2end").decode, YoloEndToEndDecode)


def test_rt_detr_is_not_taken_for_the_model_with_the_same_shape() -> None:
    with pytest.raises(RequestError, match="RT-DETR"):
        contract(detector([1, 300, 6], head="RTDETRDecoder"))


@pytest.mark.parametrize(("shape", "end2end"), [([1, 300, 6], "False"), ([1, 7, 8400], "True")])
def test_metadata_and_shape_that_contradict_each_other_are_refused(shape: list[int], end2end: str) -> None:
    with pytest.raises(RequestError, match="end2end"):
        contract(detector(shape, end2end=end2end))


@pytest.mark.parametrize("task", ["segment", "pose", "obb"])
def test_a_task_that_is_not_supported_is_named(task: str) -> None:
    with pytest.raises(RequestError, match=task):
        contract(detector([1, 39, 8400], task=task))


def test_labels_that_contradict_the_metadata_are_refused() -> None:
    with pytest.raises(RequestError, match="One of them is wrong"):
        contract(detector([1, 7, 8400]), labels=["ok", "crack", "porosity"])


def test_an_ultralytics_classifier_crops_with_antialias() -> None:
    data = model(
        {"output0": [1, 3]}, inputs={"images": [1, 3, 224, 224]},
        metadata={**ULTRALYTICS, "task": "classify", "head": "Classify"},
    )  # fmt: skip
    made = contract(data)
    assert isinstance(made.decode, ClassifyDecode)
    assert (made.input.resize.mode, made.input.resize.kernel) == ("shortest_crop", "linear_antialias")


def test_open_sizes_are_taken_from_the_metadata() -> None:
    data = model(
        {"output0": [1, 7, 8400]}, inputs={"images": ["batch", 3, "height", "width"]},
        metadata={**ULTRALYTICS, "imgsz": "[480, 640]"},
    )  # fmt: skip
    made = contract(data)
    assert made.input.shape == [1, 3, 480, 640]
    assert "imgsz" in made.notes["input.shape"]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("names", "__import__('os').system('true')"),
        ("names", "{0: 'a', 2: 'b'}"),
        ("names", "{0: 1}"),
        ("names", "{" * 5000),
        ("names", "'" + "x" * 300_000 + "'"),
        ("names", "[1]"),
        ("end2end", "maybe"),
        ("end2end", "1"),
        ("args", "[]"),
        ("imgsz", "640"),
    ],
)
def test_metadata_that_is_not_what_the_exporter_writes_is_refused(key: str, value: str) -> None:
    with pytest.raises(RequestError, match=key):
        contract(detector([1, 7, 8400], **{key: value}))


def test_a_licence_that_contradicts_the_export_is_warned_about() -> None:
    assert "AGPL" in contract(detector([1, 7, 8400]), license="MIT").warnings[0]
    assert contract(detector([1, 7, 8400]), license="AGPL-3.0").warnings == []


# --- other models ---------------------------------------------------------------------------------------------------

SAID = {"task": "classify", "labels": "a,b,c", "resize": "stretch"}


def test_a_plain_classifier_with_what_has_to_be_said() -> None:
    made = contract(model({"scores": [1, 3]}), **SAID)
    assert made.input.color == "RGB"
    assert made.notes["input.color"].startswith("custom")
    assert made.notes["input.scale"] == "custom: float inputs take 0 to 1"


@pytest.mark.parametrize("word", ["task", "labels", "resize"])
def test_what_decides_results_and_stands_nowhere_is_asked_for(word: str) -> None:
    with pytest.raises(RequestError, match=f"--{word}"):
        contract(model({"scores": [1, 3]}), **{key: value for key, value in SAID.items() if key != word})


def test_what_was_said_is_not_noted_as_inferred() -> None:
    made = contract(model({"scores": [1, 3]}), **SAID, color="BGR", scale=1.0, layout="NCHW", kernel="area")
    assert set(made.notes) == {"input.name, dtype", "input.shape", "outputs.scores"}
    assert (made.input.color, made.input.scale, made.input.resize.kernel) == ("BGR", 1.0, "area")


def test_a_uint8_nhwc_input_is_recognised() -> None:
    data = model({"scores": [1, 3]}, inputs={"image": [1, 224, 224, 3]}, dtype=TensorProto.UINT8)
    made = contract(data, **SAID)
    assert (made.input.dtype, made.input.layout, made.input.scale) == ("uint8", "NHWC", 1.0)


def test_a_grey_input_is_recognised() -> None:
    assert contract(model({"s": [1, 3]}, inputs={"image": [1, 1, 96, 96]}), **SAID).input.color == "GRAY"


def test_a_shape_that_could_be_either_layout_is_asked_about() -> None:
    with pytest.raises(RequestError, match="--layout"):
        contract(model({"s": [1, 3]}, inputs={"image": [1, 3, 3, 3]}), **SAID)


def test_an_open_input_is_asked_about_and_a_told_shape_has_to_fit() -> None:
    data = model({"s": [1, 3]}, inputs={"image": [1, 3, "h", "w"]})
    with pytest.raises(RequestError, match="--input-shape"):
        contract(data, **SAID)
    assert contract(data, **SAID, input_shape=[1, 3, 64, 64]).input.shape == [1, 3, 64, 64]
    with pytest.raises(RequestError, match="--input-shape"):
        contract(data, **SAID, input_shape=[1, 1, 64, 64])


def test_several_outputs_are_asked_about() -> None:
    data = model({"scores": [1, 3], "features": [1, 512]})
    with pytest.raises(RequestError, match="scores, features"):
        contract(data, **SAID)
    assert [output.name for output in contract(data, **SAID, output="scores").outputs] == ["scores"]
    with pytest.raises(RequestError, match="no output"):
        contract(data, **SAID, output="nothing")


def test_an_open_output_is_asked_about_and_a_told_shape_has_to_fit() -> None:
    data = model({"scores": ["n", "classes"]})
    with pytest.raises(RequestError, match="--output-shapes"):
        contract(data, **SAID)
    assert contract(data, **SAID, output_shapes=["scores=1x3"]).outputs[0].shape == [1, 3]
    for wrong in ("scores=1x3x3", "scores=many"):
        with pytest.raises(RequestError, match="--output-shapes"):
            contract(data, **SAID, output_shapes=[wrong])


def test_an_output_that_does_not_fit_the_labels_is_refused() -> None:
    with pytest.raises(RequestError, match="3 labels"):
        contract(model({"scores": [1, 4]}), **SAID)


def test_two_inputs_are_refused() -> None:
    with pytest.raises(RequestError, match="one input"):
        contract(model({"s": [1, 3]}, inputs={"a": [1, 3, 8, 8], "b": [1, 3, 8, 8]}), **SAID)


def test_a_detector_without_metadata_is_asked_about() -> None:
    data = model({"output0": [1, 7, 400]}, inputs={"images": [1, 3, 320, 320]})
    said = {"task": "detect", "labels": "a,b,c", "resize": "letterbox"}
    with pytest.raises(RequestError, match="--decode"):
        contract(data, **said)
    made = contract(data, **said, decode="yolo-raw", score_min=0.1)
    assert isinstance(made.decode, YoloRawDecode)
    assert made.decode.score_min == 0.1
    with pytest.raises(RequestError, match="not for detection"):
        contract(data, **said, decode="classify")


def test_three_outputs_with_the_usual_names_are_boxes() -> None:
    data = model({"boxes": [100, 4], "labels": [100], "scores": [100]})
    made = contract(data, task="detect", labels="a,b", resize="none", first_label=1)
    assert isinstance(made.decode, BoxesDecode)
    assert made.decode.first_label == 1
    assert made.notes["decode"] == "output names boxes, scores, labels"


# --- recipes --------------------------------------------------------------------------------------------------------


def test_a_recipe_file_gives_way_to_flags_and_finds_its_files_beside_it(tmp_path: Path) -> None:
    (tmp_path / "labels.txt").write_text("a\nb\n\n c \n")
    toml = tmp_path / "pack.toml"
    toml.write_text('model = "m.onnx"\nname = "weld"\nversion = "1.0.0"\nlabels = "labels.txt"\ngolden = "pictures"\n')
    made = recipe.compose({"version": "1.1.0"}, toml)
    assert made.version == "1.1.0"
    assert made.labels == ["a", "b", "c"]
    assert made.golden == str(tmp_path / "pictures")
    assert made.model == str(tmp_path / "m.onnx")


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ('colour = "RGB"', "colour"),
        ('color = "rgb"', "color"),
        ("latency_ms = true", "latency_ms"),
        ("memory_mb = 1.5", "memory_mb"),
        ("ok = 'good'", "ok"),
        ("= 1", "cannot be read"),
    ],
)
def test_a_wrong_word_in_a_recipe_is_named(tmp_path: Path, text: str, what: str) -> None:
    toml = tmp_path / "pack.toml"
    toml.write_text(f'model = "m"\nname = "n"\nversion = "1.0.0"\n{text}\n')
    with pytest.raises(RequestError, match=what):
        recipe.compose({}, toml)


@pytest.mark.parametrize("word", ["model", "name", "version"])
def test_a_recipe_without_a_name_says_which_word_is_missing(word: str) -> None:
    words = {"model": "m", "name": "n", "version": "1.0.0"}
    del words[word]
    with pytest.raises(RequestError, match=f"--{word}"):
        recipe.compose(words, None)


def test_the_template_names_every_word_and_is_a_recipe(tmp_path: Path) -> None:
    text = recipe.template({"model": "m.onnx", "name": "weld", "version": "1.0.0"})
    for word in recipe.fields():
        assert f"\n{word} = " in text or f"\n# {word} = " in text
    (tmp_path / "pack.toml").write_text(text)
    assert recipe.compose({}, tmp_path / "pack.toml").name == "weld"
    everything = text.replace("\n# ", "\n#").replace("\n#", "\n# ")
    assert everything.count("\n# ") > 2 * len(recipe.fields()) - 6


# --- drafts and bundles ---------------------------------------------------------------------------------------------

ANSWERS = Answers(cases={"a.png": Answer(scores={"good": 0.5, "scratched": 0.3, "missing": 0.2})})


def workshop(tmp_path: Path, **said: Any) -> Draft:
    """Make a draft of the tiny model in a folder."""
    (tmp_path / "golden").mkdir(exist_ok=True)
    (tmp_path / "golden" / "a.png").write_bytes(tinybundle.png())
    (tmp_path / "tiny.onnx").write_bytes(tinybundle.model_bytes())
    words: dict[str, Any] = {
        "model": str(tmp_path / "tiny.onnx"), "name": "cap-inspect", "version": "1.0.0", "task": "classify",
        "labels": ",".join(tinybundle.LABELS), "resize": "stretch", "layout": "NCHW", "ok": ["good"],
        "ng": ["scratched", "missing"], "latency_ms": 50.0, "memory_mb": 100, "license": "Apache-2.0",
        "golden": str(tmp_path / "golden"),
    } | said  # fmt: skip
    words = {name: value for name, value in words.items() if value is not None}
    return draft.from_recipe(recipe.compose(words, None), ANSWERS, "hand")


def test_packing_twice_gives_the_same_bytes(tmp_path: Path) -> None:
    for name in ("one.lkb", "two.lkb"):
        made = workshop(tmp_path)
        builder.build(tmp_path / name, made.parts, tinybundle.key(), made.stem)
    assert (tmp_path / "one.lkb").read_bytes() == (tmp_path / "two.lkb").read_bytes()


def test_a_packed_bundle_is_one_that_a_device_accepts(tmp_path: Path) -> None:
    made = workshop(tmp_path)
    built = builder.build(tmp_path / "cap.lkb", made.parts, tinybundle.key(), made.stem)
    read = tinybundle.read((tmp_path / "cap.lkb").read_bytes())
    assert read.digest == built.digest
    assert read.manifest.golden.produced_by == "hand"
    assert made.stem == "cap-inspect-1.0.0"
    assert list(tmp_path.glob(".*")) == [], "nothing is left beside the bundle"


def test_card_and_licence_are_written_when_the_maker_has_none(tmp_path: Path) -> None:
    parts = workshop(tmp_path, title="Caps").parts
    assert b"# Caps 1.0.0" in parts["readme.md"]
    assert b"SPDX-License-Identifier: Apache-2.0" in parts["license.txt"]
    (tmp_path / "CARD.md").write_text("mine")
    assert workshop(tmp_path, card=str(tmp_path / "CARD.md")).parts["readme.md"] == tmp_path / "CARD.md"


def test_facts_become_provenance(tmp_path: Path) -> None:
    (tmp_path / "facts.json").write_text(
        '{"source": "train.py", "metrics": {"accuracy": 0.99}, "parameters": {"epochs": 3}}'
    )
    made = workshop(tmp_path, facts=str(tmp_path / "facts.json"), parent="cap-inspect@0.9.0").manifest.provenance
    assert (made.source, made.metrics, made.parent) == ("train.py", {"accuracy": 0.99}, "cap-inspect@0.9.0")
    assert made.inferred["input.color"].startswith("custom")
    (tmp_path / "facts.json").write_text('{"scource": "typo"}')
    with pytest.raises(RequestError, match="scource"):
        workshop(tmp_path, facts=str(tmp_path / "facts.json"))


@pytest.mark.parametrize("word", ["latency_ms", "memory_mb", "license"])
def test_a_budget_and_a_licence_are_asked_for(tmp_path: Path, word: str) -> None:
    with pytest.raises(RequestError, match=f"--{word.replace('_', '-')}"):
        workshop(tmp_path, **{word: None})


def test_a_label_that_decides_nothing_is_warned_about(tmp_path: Path) -> None:
    assert "missing" in workshop(tmp_path, ng=["scratched"]).warnings[0]
    assert workshop(tmp_path).warnings == ()


def test_a_verdict_on_a_label_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match="perfect"):
        workshop(tmp_path, ok=["perfect"])


@pytest.mark.parametrize("name", ["Part 1.png", "Ä.png", ".hidden.png", "n" * 100 + ".png"])
def test_a_golden_picture_whose_name_does_not_travel_is_named(tmp_path: Path, name: str) -> None:
    (tmp_path / "golden").mkdir()
    (tmp_path / "golden" / name).write_bytes(tinybundle.png())
    with pytest.raises((BundleFormatError, LimitExceededError), match="golden"):
        workshop(tmp_path)


def test_pictures_and_answers_have_to_match(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(tinybundle.png())
    (tmp_path / "b.png").write_bytes(tinybundle.png())
    found = golden.pictures(tmp_path)
    with pytest.raises(RequestError, match=r"no answer for b\.png"):
        golden.cases(found, ANSWERS)
    with pytest.raises(RequestError, match=r"no picture for c\.png"):
        golden.cases(found[:1], Answers(cases={**ANSWERS.cases, "c.png": Answer(scores={})}))
    with pytest.raises(RequestError, match="no golden pictures"):
        golden.pictures(Path(__file__).parent)
    with pytest.raises(RequestError, match="not a folder"):
        golden.pictures(tmp_path / "nothing")


def test_answers_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    for text in ("{", '{"cases": {"a.png": {"score": {}}}}', '{"cases": 1}'):
        (tmp_path / "expected.json").write_text(text)
        with pytest.raises(RequestError, match=r"expected\.json"):
            golden.read_answers(tmp_path / "expected.json")
    with pytest.raises(RequestError, match="not there"):
        golden.find_answers(tmp_path, "other.json")


def test_a_failed_build_leaves_what_was_there_before(tmp_path: Path) -> None:
    made = workshop(tmp_path)
    path = tmp_path / "cap.lkb"
    path.write_bytes(b"what was here before")
    with pytest.raises(ManifestError, match="readme"):
        builder.build(path, {n: p for n, p in made.parts.items() if n != "readme.md"}, tinybundle.key(), made.stem)
    assert path.read_bytes() == b"what was here before"
    assert list(tmp_path.glob(".*")) == []


def test_a_model_that_breaks_its_manifest_is_not_packed(tmp_path: Path) -> None:
    made = workshop(tmp_path)
    other = onnx.load_model_from_string(tinybundle.model_bytes())
    other.graph.input[0].name = "picture"
    with pytest.raises(ManifestError, match="picture"):
        builder.build(
            tmp_path / "cap.lkb", {**made.parts, "model.onnx": other.SerializeToString()}, tinybundle.key(), made.stem
        )


def test_a_folder_with_a_model_json_is_packed_as_it_is(tmp_path: Path) -> None:
    folder = tinybundle.unpack(tmp_path / "cap", tinybundle.pack())
    made = draft.from_folder(folder)
    builder.build(tmp_path / "again.lkb", made.parts, tinybundle.key(), "cap-inspect-1.0.0")
    assert (tmp_path / "again.lkb").read_bytes() == tinybundle.pack()


def test_a_card_says_what_is_in_the_manifest(tmp_path: Path) -> None:
    manifest = workshop(tmp_path, description="Looks at caps.").manifest
    text = card.write_card(msgspec.structs.replace(manifest, title="Caps"))
    for word in (
        "# Caps",
        "Looks at caps.",
        "good, scratched, missing",
        "Apache-2.0",
        "50 ms, 100 MB",
        "answers by hand",
    ):
        assert word in text
