from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from dataset_files import SIZE, write_image
from PIL import Image

from flmm_detseg.datasets import COCOInstancesDataset
from flmm_detseg.datasets.voc import VOCOptions, convert_voc, read_stems, write_coco
from flmm_detseg.errors import ConfigError, DataError

ROOT = Path(__file__).parents[2]


def thing(name: str = "dog", box: tuple = (5, 6, 14, 17), more: str = "") -> str:
    corners = "".join(f"<{key}>{value}</{key}>" for key, value in zip(("xmin", "ymin", "xmax", "ymax"), box))
    return f"<object><name>{name}</name><bndbox>{corners}</bndbox>{more}</object>"


def annotation(objects: str = "", filename: str = "a.jpg", size: tuple = SIZE) -> str:
    sides = f"<width>{size[1]}</width><height>{size[0]}</height><depth>3</depth>"
    return f"<annotation><filename>{filename}</filename><size>{sides}</size>{objects}</annotation>"


def write(root: Path, **files: str) -> tuple[str, str]:
    """Files ``stem=xml`` with an image ``stem.jpg`` each; returns the two folders."""
    (root / "xml").mkdir(exist_ok=True)
    for stem, text in files.items():
        write_image(root / "images" / f"{stem}.jpg", len(stem))
        (root / "xml" / f"{stem}.xml").write_text(text)
    return str(root / "xml"), str(root / "images")


def test_boxes_become_half_open_and_the_reader_reads_them(tmp_path):
    objects = thing() + thing("cat", (1, 1, SIZE[1], SIZE[0])) + thing("cat", (50.5, 2, 99, 8))
    folders = write(tmp_path, a=annotation(objects), b=annotation(filename="b.jpg"))
    content, log = convert_voc(*folders)
    assert [c["name"] for c in content["categories"]] == ["cat", "dog"]
    assert [a["bbox"] for a in content["annotations"]] == [
        [4, 5, 10, 12], [0, 0, SIZE[1], SIZE[0]], [49.5, 1, SIZE[1] - 49.5, 7],
    ]  # fmt: skip
    assert not log.problems
    write_coco(content, str(tmp_path / "out/ann.json"))
    dataset = COCOInstancesDataset(str(tmp_path / "out/ann.json"), folders[1])
    assert len(dataset) == 2
    assert dataset[0].dense.boxes_xyxy[0].tolist() == [4, 5, 14, 17]
    assert dataset[0].dense.labels.tolist() == [1, 0, 0]
    zero, _ = convert_voc(*folders, VOCOptions(first_pixel=0))
    assert zero["annotations"][0]["bbox"] == [5, 6, 10, 12]


def test_difficult_objects(tmp_path):
    objects = thing(more="<difficult>1</difficult>") + thing("cat", more="<difficult>0</difficult>")
    folders = write(tmp_path, a=annotation(objects))

    def crowd(difficult: str) -> list[int]:
        content, log = convert_voc(*folders, VOCOptions(difficult=difficult))
        assert ("difficult object" in log.dropped) == (difficult == "drop")
        return [entry["iscrowd"] for entry in content["annotations"]]

    assert crowd("ignore") == [1, 0]
    assert crowd("keep") == [0, 0]
    assert crowd("drop") == [0]


def test_classes_and_lists_of_images(tmp_path):
    folders = write(
        tmp_path, a=annotation(thing()), b=annotation(thing("cat"), "b.jpg"), c=annotation(thing("cow"))
    )
    (tmp_path / "train.txt").write_text("b  1\na -1\n\n")
    stems = read_stems(str(tmp_path / "train.txt"))
    content, _ = convert_voc(*folders, VOCOptions(classes=("dog", "cat"), stems=stems))
    assert [i["file_name"] for i in content["images"]] == ["b.jpg", "a.jpg"]
    assert [a["category_id"] for a in content["annotations"]] == [2, 1]
    with pytest.raises(DataError, match="c.xml: object 0: its class 'cow' is not in the given classes"):
        convert_voc(*folders, VOCOptions(classes=("dog", "cat")))


def test_the_image_is_found_and_its_size_is_the_viewer_s(tmp_path):
    folders = write(tmp_path, a=annotation(thing(), "C:\\\\somewhere\\\\A.PNG", size=(0, 0)))
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    Image.new("RGB", (60, 40)).save(tmp_path / "images/a.jpg", exif=exif)
    content, _ = convert_voc(*folders)
    assert content["images"] == [{"id": 1, "file_name": "a.jpg", "height": 60, "width": 40}]
    write_coco(content, str(tmp_path / "ann.json"))
    assert COCOInstancesDataset(str(tmp_path / "ann.json"), folders[1])[0].image.shape == (60, 40, 3)


FAULTS = [
    (annotation(thing())[:-20], "not well-formed XML"),
    ("", "not well-formed XML"),
    ('<?xml version="1.0" encoding="nonsense"?><annotation/>', "not well-formed XML"),
    ("<html/>", "its root is <html>"),
    (annotation(thing(), size=(10, 10)), r"<size> says 10 x 10, its image is 40 x 60"),
    (annotation(thing(), size=("tall", 10)), "<height> is 'tall', not a number"),
    (annotation("<object><bndbox/></object>"), "object 0: it has no <name>"),
    (annotation("<object><name>dog</name></object>"), "object 0: its <bndbox> lacks xmin"),
    (annotation(thing(box=(1, 2, 3))), "its <bndbox> lacks xmin, ymin, xmax or ymax"),
    (annotation(thing(box=(1, 2, "x", 4))), "<xmax> is 'x', not a number"),
    (annotation(thing(box=(1, 2, "nan", 4))), "<xmax> is 'nan', not a number"),
    (annotation(thing() + thing(box=(9, 2, 3, 4))), "object 1: its box .* has swapped corners"),
]


@pytest.mark.parametrize(("text", "match"), FAULTS)
def test_a_faulty_file_is_an_error_or_a_reported_skip(tmp_path, text, match):
    folders = write(tmp_path, bad=text, good=annotation(thing(), "good.jpg"))
    with pytest.raises(DataError, match=match) as caught:
        convert_voc(*folders)
    assert "bad.xml" in str(caught.value)
    content, log = convert_voc(*folders, VOCOptions(policy="skip"))
    assert len(log.problems) == 1
    assert [i["file_name"] for i in content["images"]] == ["good.jpg"]


def test_missing_things(tmp_path):
    folders = write(tmp_path, a=annotation(thing(box=(70, 2, 80, 4)) + thing()))
    _, log = convert_voc(*folders)
    assert [record.split(": ")[1] for record in log.dropped["degenerate box"]] == ["object 0"]
    (tmp_path / "images/a.jpg").write_bytes(b"no picture")
    with pytest.raises(DataError, match="a.jpg.*cannot be"):
        convert_voc(*folders)
    (tmp_path / "images/a.jpg").unlink()
    with pytest.raises(DataError, match="no image 'a.jpg'"):
        convert_voc(*folders)
    with pytest.raises(DataError, match="none of 1 XML files can be used"):
        convert_voc(*folders, VOCOptions(policy="skip"))
    with pytest.raises(DataError, match="gone.xml: file not found"):
        convert_voc(*folders, VOCOptions(stems=("gone",)))
    with pytest.raises(DataError, match="no XML file in it"):
        convert_voc(folders[1], folders[1])
    for wrong in (dict(first_pixel=2), dict(difficult="maybe"), dict(classes=("a", "a"))):
        with pytest.raises(ConfigError):
            VOCOptions(**wrong)


@pytest.mark.case("data/10_voc_filename_is_stale")
@pytest.mark.parametrize(
    ("names", "kinds"),
    [
        (
            dict(a="b.jpg", b="a.jpg"),
            {"ambiguous image": 2},
        ),  # renamed pictures: each gets the other one's boxes
        (dict(a="a.jpg", b="a.jpg"), {"ambiguous image": 1}),  # copied XML
        (dict(a="b.jpg", b="b.jpg"), {"ambiguous image": 1}),
        (dict(a="C:\\\\old\\\\b.jpg", b="b.jpg"), {"ambiguous image": 1}),
    ],
)
def test_an_outdated_name_of_an_image_is_a_problem(tmp_path, names, kinds):
    folders = write(
        tmp_path,
        **{stem: annotation(thing(), name) for stem, name in names.items()},
        c=annotation(thing(), "c.jpg"),
    )
    with pytest.raises(DataError, match=r"\.xml: <filename> says .\.jpg, but .\.jpg is there too"):
        convert_voc(*folders)
    content, log = convert_voc(*folders, VOCOptions(policy="skip"))
    assert log.counts() == kinds
    assert content["images"][-1]["file_name"] == "c.jpg"
    assert len(content["images"]) == 3 - sum(kinds.values())


@pytest.mark.case("data/10_voc_filename_is_stale")
def test_two_files_of_one_image_leave_it_out(tmp_path):
    """Sub-folders with equal names end at one picture; each file has a part of its objects at best."""
    folders = write(tmp_path, a=annotation(thing()), b=annotation(thing(), "b.jpg"))
    (tmp_path / "xml/s1").mkdir()
    (tmp_path / "xml/s1/a.xml").write_text(annotation(thing("cat")))
    with pytest.raises(DataError, match=r"a.xml: it is about the image a.jpg, and so is .*a.xml"):
        convert_voc(*folders)
    content, log = convert_voc(*folders, VOCOptions(policy="skip"))
    assert log.counts() == {"two files of one image": 1}
    assert [image["file_name"] for image in content["images"]] == ["b.jpg"]


@pytest.mark.case("data/08_image_field_holds_a_data_uri")
@pytest.mark.parametrize("name", ["x" * 300 + ".jpg", "y" * 5000, "z\\" * 3000])
def test_a_name_that_no_file_can_have_is_no_name(tmp_path, name):
    folders = write(tmp_path, a=annotation(thing(), name), b=annotation(thing(), "b.jpg"))
    (tmp_path / "images/a.jpg").unlink()
    with pytest.raises(DataError, match=r"a.xml: no image '.*' \(nor a.jpg"):
        convert_voc(*folders)
    content, log = convert_voc(*folders, VOCOptions(policy="skip"))
    assert log.counts() == {"missing image": 1}
    assert len(str(log.problems[0])) < 600
    assert len(content["images"]) == 1


@pytest.mark.case("data/18_encodings")
def test_lists_of_other_tools(tmp_path):
    folders = write(
        tmp_path, **{name: annotation(thing(), f"{name}.jpg") for name in ("a", "my photo 1", "b", "ü")}
    )
    listed = tmp_path / "list.txt"
    listed.write_bytes("\ufeffa\r\nmy photo 1\nb -1\nü.xml\n".encode())
    content, _ = convert_voc(*folders, VOCOptions(stems=read_stems(str(listed))))
    assert [i["file_name"] for i in content["images"]] == ["a.jpg", "my photo 1.jpg", "b.jpg", "ü.jpg"]
    listed.write_bytes("a\nü\n".encode("cp1252"))
    with pytest.raises(DataError, match="list.txt.*save it as UTF-8"):
        read_stems(str(listed))


@pytest.mark.e2e
def test_tool(tmp_path):
    folders = write(tmp_path, bad="<html/>", good=annotation(thing(), "good.jpg"))
    out = tmp_path / "coco.json"
    command = [sys.executable, str(ROOT / "tools/voc_to_coco.py"), *folders, "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 2
    assert "bad.xml: its root is <html>" in done.stderr.splitlines()[-1]
    assert not out.exists()
    done = subprocess.run([*command, "--skip"], capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0
    figures = json.loads(done.stdout.splitlines()[-1])
    assert figures == {
        "out": str(out), "images": 1, "annotations": 1, "classes": ["dog"], "skipped": {"malformed": 1}, "dropped": {},
    }  # fmt: skip
    assert "bad.xml" in done.stdout.splitlines()[0]
    assert json.loads(out.read_text())["annotations"][0]["category_id"] == 1
