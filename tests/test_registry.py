"""Names of models, their cards, local weights, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from urllib.error import URLError

import geopandas as gpd
import numpy as np
import pytest
import torch
from calibrated import calibrate, picture
from torch import nn
from torchvision.models import detection

from geoseg.cli.main import main
from geoseg.errors import ModelError
from geoseg.models import known
from geoseg.models.known import KNOWN, known_card, known_model
from geoseg.models.maskrcnn import Architecture, build_maskrcnn, count_weights
from geoseg.models.registry import find_card, find_model, load_model, open_model

NAME = "fasterrcnn_resnet50_fpn"
COCO = [name for name, model in KNOWN.items() if model.weights]
OLD_NAMES = {
    "rpn.head.conv.0.0.weight": "rpn.head.conv.weight",
    "rpn.head.conv.0.0.bias": "rpn.head.conv.bias",
    **{
        f"backbone.fpn.{kind}.{i}.0.{end}": f"backbone.fpn.{kind}.{i}.{end}"
        for kind in ("inner_blocks", "layer_blocks")
        for i in range(4)
        for end in ("weight", "bias")
    },
    **{
        f"roi_heads.mask_head.{i}.0.{end}": f"roi_heads.mask_head.mask_fcn{i + 1}.{end}"
        for i in range(4)
        for end in ("weight", "bias")
    },
}


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def network(name: str = NAME, outputs: int = 91, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    build = getattr(detection, name)
    return build(weights=None, weights_backbone=None, num_classes=outputs).eval()


@pytest.fixture(scope="module")
def weights() -> dict[str, torch.Tensor]:
    model = network()
    calibrate(model, torch.from_numpy(picture(1, 128, 160)).float() / 60 - 2)
    return model.state_dict()


@pytest.fixture
def save(tmp_path):
    """Return a function that saves something with torch.save; the files go with the test."""
    made: list[Path] = []

    def write(what, name: str = "weights.pth") -> Path:
        made.append(tmp_path / name)
        torch.save(what, made[-1])
        return made[-1]

    yield write
    for path in made:
        path.unlink(missing_ok=True)


@pytest.fixture
def no_network(monkeypatch, tmp_path):
    def refuse(*_args, **_kwargs):
        raise URLError("no route to host")

    monkeypatch.setattr(torch.hub, "download_url_to_file", refuse)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    return tmp_path / "hub" / "checkpoints"


# --- cards -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", COCO)
def test_cards_of_coco_models(name, no_network):
    card = find_card(name)
    assert len(card.classes) == 80
    assert "N/A" not in card.classes
    assert (card.classes[0], card.class_outputs[0]) == ("person", 1)
    assert (card.classes[-1], card.class_outputs[-1]) == ("toothbrush", 90)
    # 12 is a hole: street sign never made it into the data
    assert card.class_outputs[card.classes.index("stop sign")] == 13
    assert card.gsd_m is None
    assert card.n_outputs == 90
    assert card.has_masks == name.startswith("mask")
    assert ("Boxes only" in card.description) != card.has_masks
    assert "COCO" in card.licence
    # the first versions were trained with norms that add nothing to the variance
    assert card.architecture.get("norm_eps", 1e-5) == (1e-5 if name.endswith("v2") else 0.0)
    # official figures of the weights: parameters of the network, norms' statistics not counted
    with torch.device("meta"):
        model = build_maskrcnn(Architecture.from_dict(card.architecture), card.n_outputs)
        theirs = network(name)
    assert {k: v.shape for k, v in model.state_dict().items() if "num_b" not in k} == {
        k: v.shape for k, v in theirs.state_dict().items() if "num_b" not in k
    }
    total = known._weights(KNOWN[name]).meta["num_params"]
    assert sum(p.numel() for p in model.parameters()) == total


def test_networks_to_train():
    for name in ("maskrcnn_resnet101_fpn", "maskrcnn:resnet18"):
        assert "to be trained" in find_card(name).description
        with pytest.raises(ModelError, match=r"no weights for detection.*geoseg train makes"):
            load_model(name)
    architecture = Architecture.from_dict(known_card(known_model("maskrcnn:resnet18")).architecture)
    assert (architecture.family, architecture.backbone) == ("timm_fpn", "resnet18")
    deep = find_card("maskrcnn_resnet101_fpn").architecture
    # 42 blocks' difference: ResNet-101 has 18.99 million weights more than ResNet-50
    more = count_weights(Architecture.from_dict(deep), 1)
    less = count_weights(Architecture.from_dict(KNOWN["maskrcnn_resnet50_fpn"].architecture), 1)
    assert 18.9e6 < more - less < 19.2e6


def test_no_network(no_network):
    with pytest.raises(ModelError) as caught:
        load_model("maskrcnn_resnet50_fpn_v2")
    text = str(caught.value)
    assert "https://download.pytorch.org/models/maskrcnn_resnet50_fpn_v2_coco-" in text
    assert str(no_network / "maskrcnn_resnet50_fpn_v2_coco-73cbd019.pth") in text
    assert "maskrcnn_resnet50_fpn_v2@/path/to/" in text


def test_what_lies_in_the_cache_is_used(no_network):
    no_network.mkdir(parents=True)
    path = no_network / "fasterrcnn_resnet50_fpn_coco-258fb6c6.pth"
    path.write_bytes(b"anything")
    assert find_model(NAME) == path


def test_unknown_names(tmp_path):
    with pytest.raises(ModelError, match=r"unknown model 'maskrcnn'.*maskrcnn:BACKBONE"):
        find_model("maskrcnn")
    with pytest.raises(ModelError, match="does not exist; check the path"):
        find_model(f"{NAME}@{tmp_path / 'none.pth'}")
    with pytest.raises(ModelError, match=r"weights=x.pth goes with a known model"):
        load_model("buildings", weights="x.pth")


# --- files -----------------------------------------------------------------------------------


def test_a_local_file(weights, save):
    path = save(weights)
    by_name = load_model(NAME, weights=path, device="cpu")
    # not the official weights: torchvision's own norms add 1e-5
    assert "norm_eps" not in by_name.card.architecture
    assert by_name.card.licence == known.UNSURE
    tile = picture(1, 128, 160)
    found = by_name(tile)[0]
    assert len(found) > 10
    same = [load_model(f"{NAME}@{path}", device="cpu"), load_model(path, device="cpu")]
    assert {d.fingerprint for d in same} == {by_name.fingerprint}
    for detector in same:
        np.testing.assert_array_equal(detector(tile)[0].boxes, found.boxes)
    limited = load_model(path, device="cpu", max_detections=3, nms_iou=0.3, proposals=100)
    assert len(limited(tile)[0]) == 3
    assert limited.fingerprint != by_name.fingerprint


def test_old_names_and_wrappings(save):
    weights = network("maskrcnn_resnet50_fpn").state_dict()
    old = {OLD_NAMES.get(k, k): v for k, v in weights.items()}
    assert sum(k not in weights for k in old) == 26
    path = save({"model": {f"module.{k}": v for k, v in old.items()}, "epoch": 3})
    card, found = open_model(path)
    assert card.name == "maskrcnn_resnet50_fpn"
    wanted = {k: v for k, v in weights.items() if not k.endswith("num_batches_tracked")}
    assert set(found) == set(wanted)
    assert all(torch.equal(found[k], v) for k, v in wanted.items())


def test_own_classes(save):
    path = save(network(outputs=4).state_dict())
    assert find_card(path).classes == ("class_1", "class_2", "class_3")
    card = json.loads(find_card(path).to_json())
    card |= {"name": "mine", "classes": ["car", "bus", "van"], "gsd_m": 0.1}
    path.with_suffix(".json").write_text(json.dumps(card))
    mine = load_model(path, device="cpu")
    assert (mine.classes, mine.gsd_m, mine.card.name) == (("car", "bus", "van"), 0.1, "mine")


def test_weights_that_do_not_fit(weights, save):
    with pytest.raises(ModelError, match=r"does not fit the architecture: .*12 unknown|mask_head"):
        load_model("maskrcnn_resnet50_fpn", weights=save(weights), device="cpu")
    less = {k: v for k, v in weights.items() if k != "rpn.head.cls_logits.bias"}
    path = save(less | {"extra": torch.zeros(1)})
    with pytest.raises(ModelError, match=rf"none of the known networks.*nearest is {NAME}"):
        load_model(path, device="cpu")
    with pytest.raises(
        ModelError, match=r"1 weights missing \['rpn.head.cls_logits.bias'\], 1 unknown \['extra'\]"
    ):
        load_model(f"{NAME}@{path}", device="cpu")
    bad = {k: v.clone() for k, v in weights.items()}
    for name in ("rpn.head.cls_logits.bias", "backbone.body.conv1.weight"):
        bad[name].view(-1)[0] = float("nan")
    with pytest.raises(
        ModelError,
        match=r"2 weights hold values that are not finite: backbone.body.conv1.weight, rpn.head.cls",
    ):
        load_model(save(bad), device="cpu")


class Payload:
    """Would write a file when unpickled."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


def test_files_that_are_no_weights(save, tmp_path):
    with pytest.raises(ModelError, match=r"wants to call getattr.* refused, nothing in it was run"):
        load_model(save({"model": Payload(tmp_path / "ran")}), device="cpu")
    assert not (tmp_path / "ran").exists()
    with pytest.raises(ModelError, match="holds a list; expected a table of weights"):
        load_model(save([1]), device="cpu")
    with pytest.raises(ModelError, match=r"holds what is no weight: lr \(float\)"):
        load_model(save({"lr": 0.1}), device="cpu")
    with pytest.raises(ModelError, match=r"no weights by torchvision's names"):
        load_model(save({"w": torch.zeros(1)}), device="cpu")
    broken = save({"w": torch.zeros(1)})
    broken.write_bytes(broken.read_bytes()[:100])
    with pytest.raises(ModelError, match="not a readable torch file"):
        load_model(broken, device="cpu")


# --- the command line ------------------------------------------------------------------------


def test_the_list(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "300")
    assert main(["models"]) == 0
    out = capsys.readouterr().out
    for name in (*KNOWN, "maskrcnn:BACKBONE"):
        assert name in out
    assert main(["models", "--json"]) == 0
    cards = {card["name"]: card for card in json.loads(capsys.readouterr().out)}
    assert set(KNOWN) <= set(cards)
    assert len(cards[NAME]["classes"]) == 80


@pytest.mark.parametrize("name", [NAME, "maskrcnn_resnet50_fpn_v2"])
def test_a_card_as_stac(name, capsys, no_network):
    assert main(["models", "show", name, "--stac"]) == 0
    item = json.loads(capsys.readouterr().out)
    assert (item["type"], item["stac_version"], item["geometry"]) == ("Feature", "1.1.0", None)
    assert item["stac_extensions"] == ["https://stac-extensions.github.io/mlm/v1.4.0/schema.json"]
    properties, asset = item["properties"], item["assets"]["model"]
    for field in ("name", "architecture", "tasks", "input", "output"):
        assert properties[f"mlm:{field}"]
    task = "instance-segmentation" if name.startswith("mask") else "object-detection"
    assert properties["mlm:tasks"] == [task]
    (tiles,) = properties["mlm:input"]
    assert [round(s["mean"], 3) for s in tiles["value_scaling"]] == [123.675, 116.28, 103.53]
    assert len(properties["mlm:output"][0]["classification:classes"]) == 80
    assert "gsd" not in properties
    # statistics of norms are weights too
    assert properties["mlm:total_parameters"] > known._weights(KNOWN[name]).meta["num_params"]
    assert asset["href"].startswith("https://download.pytorch.org/models/")
    assert "mlm:model" in asset["roles"]
    assert asset["mlm:artifact_type"] == "torch.save"


def test_the_shipped_card_as_stac(capsys):
    assert main(["models", "show", "buildings", "--stac"]) == 0
    item = json.loads(capsys.readouterr().out)
    assert item["properties"]["gsd"] == find_card("buildings").gsd_m
    assert Path(item["assets"]["model"]["href"]) == find_model("buildings")


def test_detect_with_a_local_file(weights, save, make_raster, tmp_path, capsys):
    path = save(weights)
    image = make_raster("image.tif", picture(1, 150, 180)[0])
    output = tmp_path / "found.gpkg"
    options = ["--tile-size", "128", "--overlap", "32", "--min-score", "0.3", "-j", "1"]
    name = f"{NAME}@{path}"
    assert main(["detect", str(image), "-o", str(output), "--model", name, *options]) == 0
    capsys.readouterr()
    objects = gpd.read_file(output, layer="objects")
    assert len(objects) > 5
    # an object is its box: upright rectangles, or unions of those that tiles cut
    whole = objects.geometry.area / objects.geometry.envelope.area
    assert (whole > 0.999).mean() > 0.5
    assert set(objects["class"]) <= set(find_card(NAME).classes)
