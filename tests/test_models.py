"""Cards, weights, the network's own operators and the detector that is made of them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torchvision.ops import MultiScaleRoIAlign

from geoseg.errors import ModelError
from geoseg.models.card import ModelCard, load_card_and_weights, read_card, save_model
from geoseg.models.detector import Detector
from geoseg.models.inference import MaskRCNNDetector, choose_device
from geoseg.models.maskrcnn import Architecture, build_maskrcnn
from geoseg.models.registry import find_card, find_model, load_model, shipped_models
from geoseg.models.roialign import PyramidRoIAlign
from geoseg.records import Instances

TINY = Architecture(fpn_channels=32, box_features=64, mask_convs=1)
CARD = ModelCard(
    name="tiny",
    classes=("roof", "tree"),
    gsd_m=0.2,
    architecture=TINY.to_dict(),
    tile_size=128,
    overlap=32,
    min_score=0.3,
    proposals=60,
    credits=("Ä. Müller",),
    quality={"f1": 0.5},
)


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Threads that wait for each other on a busy machine make small networks slow."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def tiny_network(seed: int = 0):
    """Return a network with random weights that finds things: scores differ from box to box."""
    torch.manual_seed(seed)
    model = build_maskrcnn(TINY, len(CARD.classes))
    for name, value in model.state_dict().items():
        # a fresh network's batch norms change nothing; a trained one's do
        if name.endswith(("running_mean", "bn1.bias", "bn2.bias", "bn3.bias")):
            value.normal_(0, 0.1)
        elif name.endswith("running_var"):
            value.uniform_(0.5, 1.5)
    with torch.no_grad():
        model.roi_heads.box_predictor.cls_score.weight.normal_(0, 0.3)
        model.roi_heads.box_predictor.bbox_pred.weight.normal_(0, 0.02)
        model.rpn.head.cls_logits.weight.normal_(0, 0.3)
    return model


@pytest.fixture
def model_file(tmp_path) -> Path:
    return save_model(tmp_path / "tiny.safetensors", tiny_network(), CARD)


@pytest.fixture
def tiles() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (3, 3, 96, 128), dtype=np.uint8)


# --- files -----------------------------------------------------------------------------------


def test_card_and_weights_round_trip(model_file):
    assert read_card(model_file).to_json() == CARD.to_json()
    card, weights = load_card_and_weights(model_file)
    assert card.to_json() == CARD.to_json()
    assert card.credits == ("Ä. Müller",)
    assert Architecture.from_dict(card.architecture) == TINY
    wanted = tiny_network().state_dict()
    kept = {k: v for k, v in wanted.items() if not k.endswith("num_batches_tracked")}
    assert set(weights) == set(kept)
    assert all(torch.equal(weights[k], v) for k, v in kept.items())
    # half precision halves the file and comes back as float32
    half = save_model(model_file.with_name("half.safetensors"), tiny_network(), CARD, half=True)
    assert half.stat().st_size < 0.55 * model_file.stat().st_size
    _, weights = load_card_and_weights(half)
    assert all(v.dtype == torch.float32 for v in weights.values())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "has no card; expected tiny.json beside it"),
        ("{", "is not valid JSON"),
        ("[]", "is not a model card; expected a JSON object"),
        ('{"name": "x"}', r"lacks \['architecture', 'classes', 'gsd_m'\]"),
        ({"colour": 1}, r"unknown keys \['colour'\]; it needs a newer geoseg"),
        ({"classes": []}, "has no classes"),
        ({"gsd_m": 0}, "gsd_m is 0; expected above 0"),
        ({"gsd_m": float("nan")}, "gsd_m is nan"),
        ({"min_score": 2}, r"min_score must lie in \[0, 1\]"),
        ({"architecture": {"depth": 50}}, r"architecture has unknown keys \['depth'\]"),
        ({"architecture": {"backbone": "resnet_5000"}}, "unknown timm backbone 'resnet_5000'"),
        ({"architecture": {"fpn_channels": 64}}, "does not fit the architecture"),
        ({"classes": ["roof"]}, r"does not fit the architecture.*of other shape"),
    ],
)
def test_broken_cards(model_file, text, message):
    card = model_file.with_suffix(".json")
    if isinstance(text, dict):
        text = json.dumps(json.loads(card.read_text(encoding="utf-8")) | text)
    if text is None:
        card.unlink()
    else:
        card.write_text(text, encoding="utf-8")
    with pytest.raises(ModelError, match=message):
        load_model(model_file)


@pytest.mark.parametrize("cut", [0, 5, 5_000])
def test_broken_weights(model_file, cut):
    model_file.write_bytes(model_file.read_bytes()[:cut])
    with pytest.raises(ModelError, match=r"tiny.safetensors is not a readable safetensors file"):
        load_model(model_file)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_weights_that_are_not_finite(model_file, bad):
    weights = load_file(model_file)
    weights["backbone.fpn.inner_blocks.0.0.weight"][0, 0] = bad
    save_file(weights, model_file)
    with pytest.raises(ModelError, match=r"inner_blocks.0.0.weight holds values that are not fin"):
        load_model(model_file)


def test_weights_of_another_network(model_file):
    weights = load_file(model_file)
    del weights["roi_heads.box_head.fc.bias"]
    weights["extra"] = torch.zeros(1)
    save_file(weights, model_file)
    with pytest.raises(
        ModelError, match=r"1 weights missing \['roi_heads.box_head.fc.bias'\], 1 u"
    ):
        load_model(model_file)


def test_names(model_file):
    assert find_model(model_file) == model_file
    assert find_card(str(model_file)).name == "tiny"
    with pytest.raises(ModelError, match=r"unknown model 'house'; expected one of the shipped"):
        load_model("house")
    with pytest.raises(ModelError, match="does not exist; check the path"):
        find_model(model_file.with_name("other.safetensors"))
    for name, path in shipped_models().items():
        assert find_card(name).name == name
        assert path.stat().st_size <= 25_000_000


# --- operators -------------------------------------------------------------------------------


def test_pooling_is_that_of_torchvision():
    levels = ("0", "1", "2", "3")
    generator = torch.Generator().manual_seed(0)
    sizes = [(256, 320)] * 2
    shapes = [(64, 80), (32, 40), (16, 20), (8, 10)]
    maps = [torch.randn(2, 5, *s, generator=generator) for s in shapes]
    # from less than a cell to more than the image, also past its edges
    corner = torch.rand(120, 2, generator=generator) * 300 - 20
    side = torch.exp(torch.rand(120, 2, generator=generator) * 6.5)
    boxes = torch.cat([corner, corner + side], 1)
    boxes = [boxes[:70], boxes[70:]]
    ours = {n: m.clone().requires_grad_() for n, m in zip(levels, maps, strict=True)}
    theirs = {n: m.clone().requires_grad_() for n, m in zip(levels, maps, strict=True)}
    for size in (7, 14):
        got = PyramidRoIAlign(levels, size)(ours, boxes, sizes)
        want = MultiScaleRoIAlign(list(levels), size, 2)(theirs, boxes, sizes)
        torch.testing.assert_close(got, want, atol=1e-4, rtol=1e-4)
        weight = torch.randn(want.shape, generator=generator)
        (got * weight).sum().backward()
        (want * weight).sum().backward()
        for name in levels:
            assert theirs[name].grad.abs().max() > 0
            torch.testing.assert_close(ours[name].grad, theirs[name].grad, atol=1e-4, rtol=1e-4)


def test_pooling_of_no_boxes():
    maps = {str(i): torch.randn(1, 5, 64 >> i, 64 >> i) for i in range(4)}
    out = PyramidRoIAlign(("0", "1", "2", "3"), 7)(maps, [torch.zeros(0, 4)], [(256, 256)])
    assert out.shape == (0, 5, 7, 7)


def test_fused_batch_norm_changes_nothing(tiles):
    network, plain = tiny_network(), tiny_network().eval()
    detector = MaskRCNNDetector(network, CARD, device="cpu")
    names = [type(m).__name__ for m in detector.model.backbone.body.modules()]
    assert not [n for n in names if "BatchNorm" in n], "every norm is folded"
    pixels = torch.from_numpy(tiles).float() / 127.5 - 1
    with torch.no_grad():
        got, want = detector.model.backbone(pixels), plain.backbone(pixels)
    for name, feature in want.items():
        torch.testing.assert_close(got[name], feature, atol=1e-3, rtol=1e-3)


# --- the detector ----------------------------------------------------------------------------


def same(one: Instances, two: Instances) -> None:
    np.testing.assert_allclose(one.boxes, two.boxes, atol=0.02)
    np.testing.assert_allclose(one.scores, two.scores, atol=1e-4)
    np.testing.assert_array_equal(one.labels, two.labels)
    np.testing.assert_allclose(one.masks, two.masks, atol=1e-3)


def test_what_a_detector_returns(model_file, tiles):
    detector = load_model(model_file, device="cpu")
    assert isinstance(detector, Detector)
    assert (detector.classes, detector.gsd_m) == (("roof", "tree"), 0.2)
    assert (detector.tile_size, detector.overlap, detector.min_score) == (128, 32, 0.3)
    assert len(detector.fingerprint) == 64
    found = detector(tiles)
    assert len(found) == 3
    assert sum(len(f) for f in found) > 20
    for one in found:
        n = len(one)
        assert (one.boxes.shape, one.boxes.dtype) == ((n, 4), np.float32)
        assert (one.scores.shape, one.scores.dtype) == ((n,), np.float32)
        assert (one.labels.shape, one.labels.dtype) == ((n,), np.int64)
        assert (one.masks.shape, one.masks.dtype) == ((n, 28, 28), np.float32)
        assert one.scores.min() >= 0.3
        assert set(one.labels.tolist()) <= {0, 1}
        assert (one.masks >= 0).all()
        assert (one.masks <= 1).all()
        # boxes lie in the tile: 128 columns, 96 rows
        assert one.boxes.min() >= 0
        assert one.boxes[:, [0, 2]].max() <= 128
        assert one.boxes[:, [1, 3]].max() <= 96
    assert {label for one in found for label in one.labels.tolist()} == {0, 1}


def test_a_batch_is_its_tiles_one_by_one(tiles):
    together = MaskRCNNDetector(tiny_network(), CARD, device="cpu", batch=3)(tiles)
    single = MaskRCNNDetector(tiny_network(), CARD, device="cpu", batch=1)
    for i, one in enumerate(together):
        same(one, single(tiles[i : i + 1])[0])


def test_pixel_types_hold_the_same_values(tiles):
    detector = MaskRCNNDetector(tiny_network(), CARD, device="cpu")
    for dtype in (np.uint16, np.int16, np.float32):
        same(detector(tiles[:1].astype(dtype))[0], detector(tiles[:1])[0])
    wide = replace(CARD, value_range=(0.0, 25500.0))
    scaled = MaskRCNNDetector(tiny_network(), wide, device="cpu")
    same(scaled(tiles[:1].astype(np.uint16) * 100)[0], detector(tiles[:1])[0])


def test_thresholds_of_the_card_and_the_caller(tiles):
    def scores(card=CARD, **kwargs):
        found = MaskRCNNDetector(tiny_network(), card, device="cpu", **kwargs)(tiles)
        return np.concatenate([f.scores for f in found])

    every, card, strict = scores(min_score=0.0), scores(), scores(min_score=0.6)
    assert len(every) > len(card) > len(strict) > 0
    assert every.min() < 0.3 <= card.min() < 0.6 <= strict.min()
    # fewer boxes may overlap where the card's NMS is strict
    assert 0 < len(scores(replace(CARD, nms_iou=0.1))) < len(card)


def test_reaching_the_cap_is_said(tiles):
    free = MaskRCNNDetector(tiny_network(), CARD, device="cpu")(tiles[:1])[0]
    assert len(free) > 5
    assert not free.saturated
    capped = MaskRCNNDetector(tiny_network(), replace(CARD, max_detections=5), device="cpu")
    found = capped(tiles[:1])[0]
    assert len(found) == 5
    assert found.saturated
    # the best ones stay
    np.testing.assert_allclose(np.sort(found.scores), np.sort(free.scores)[-5:], atol=1e-5)


def test_a_tile_in_which_nothing_is_found(tiles):
    detector = MaskRCNNDetector(tiny_network(), CARD, device="cpu", min_score=1.0)
    found = detector(tiles)
    assert [len(f) for f in found] == [0, 0, 0]
    assert all(f.masks.shape == (0, 28, 28) for f in found)


def test_tiles_of_the_wrong_shape(tiles):
    detector = MaskRCNNDetector(tiny_network(), CARD, device="cpu")
    with pytest.raises(ModelError, match=r"wants \(N, 3, H, W\) with bands red, green, blue"):
        detector(tiles[:, :2])
    with pytest.raises(ModelError, match=r"tiles have shape \(3, 96, 128\)"):
        detector(tiles[0])


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_cuda_without_a_gpu():
    assert choose_device("auto").type == "cpu"
    with pytest.raises(ModelError, match="torch sees no GPU; geoseg doctor tells why"):
        choose_device("cuda")


@pytest.mark.skipif("buildings" not in shipped_models(), reason="no model is shipped")
def test_the_shipped_model_finds_nothing_where_nothing_is():
    detector = load_model("buildings", device="cpu")
    assert detector.card.gsd_m == pytest.approx(0.13, abs=0.03)
    blank = np.zeros((1, 3, 256, 256), np.uint8)
    assert len(detector(blank)[0]) == 0
