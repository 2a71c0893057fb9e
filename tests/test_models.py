"""Cards, weights, the network's own operators and the detector that is made of them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import rasterio
import shapely
import torch
from rasterio.windows import Window
from safetensors.torch import load_file, save_file
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import MultiScaleRoIAlign, roi_align

from geoseg.errors import ModelError, TileError
from geoseg.models.card import ModelCard, load_card_and_weights, read_card, save_model
from geoseg.models.detector import Detector
from geoseg.models.inference import MaskRCNNDetector, choose_device, propose
from geoseg.models.maskrcnn import Architecture, PyramidAnchors, build_maskrcnn
from geoseg.models.registry import find_card, find_model, load_model, shipped_models
from geoseg.models.roialign import PyramidRoIAlign
from geoseg.objects.vectorize import vectorize
from geoseg.records import Instances, Tile
from geoseg.scenes.town import render_town

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
        ({"gsd_m": 0}, "gsd_m is 0; expected (above 0|0.001 to 1000)"),
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


@pytest.mark.parametrize("aligned", [False, True])
@pytest.mark.parametrize("samples", [0, 1, 2, 3])
def test_pooling_aligned_and_adaptive(aligned, samples):
    generator = torch.Generator().manual_seed(1)
    feature = torch.randn(2, 4, 40, 52, generator=generator)
    corner = torch.rand(60, 2, generator=generator) * 200 - 20
    side = torch.exp(torch.rand(60, 2, generator=generator) * 6 - 1)
    rois = torch.cat([torch.arange(60)[:, None] % 2, corner, corner + side], 1)
    pool = PyramidRoIAlign(("0",), 7, samples, aligned=aligned)
    want = roi_align(feature, rois, 7, 0.25, samples, aligned)
    torch.testing.assert_close(pool.pool(feature, rois, 0.25), want, atol=1e-4, rtol=1e-4)
    empty = torch.tensor([[0.0, 20.0, 30.0, 20.0, 60.0]])
    want = roi_align(feature, empty, 7, 0.25, samples, aligned)
    torch.testing.assert_close(pool.pool(feature, empty, 0.25), want, atol=1e-4, rtol=1e-4)
    if samples == 2:
        want = roi_align(feature, rois, 7, 0.25, samples, aligned)
        # half a cell apart: the option does something
        other = roi_align(feature, rois, 7, 0.25, samples, not aligned)
        assert (want - other).abs().max() > 0.1


def test_levels_of_boxes_by_size():
    maps = {str(i): torch.full((1, 1, 128 >> i, 128 >> i), float(i)) for i in range(4)}
    sides = torch.tensor([10.0, 111.0, 113.0, 223.0, 225.0, 447.0, 449.0])
    boxes = torch.stack([sides * 0, sides * 0, sides, sides], 1)
    out = PyramidRoIAlign(("0", "1", "2", "3"), 7, level_eps=1e-8)(maps, [boxes], [(512, 512)])
    assert out[:, 0, 3, 3].tolist() == [0, 0, 1, 1, 2, 2, 3]


def test_pooling_of_no_boxes():
    maps = {str(i): torch.randn(1, 5, 64 >> i, 64 >> i) for i in range(4)}
    out = PyramidRoIAlign(("0", "1", "2", "3"), 7)(maps, [torch.zeros(0, 4)], [(256, 256)])
    assert out.shape == (0, 5, 7, 7)


def test_fused_batch_norm_changes_nothing(tiles):
    network, plain = tiny_network(), tiny_network().eval()
    detector = MaskRCNNDetector(network, CARD, device="cpu", precision="float32")
    names = [type(m).__name__ for m in detector.model.backbone.body.modules()]
    assert not [n for n in names if "BatchNorm" in n], "every norm is folded"
    pixels = torch.from_numpy(tiles).float() / 127.5 - 1
    with torch.no_grad():
        got, want = detector.model.backbone(pixels), plain.backbone(pixels)
    for name, feature in want.items():
        torch.testing.assert_close(got[name], feature, atol=1e-3, rtol=1e-3)


# --- architectures ---------------------------------------------------------------------------

SMALL = {"fpn_channels": 32, "box_features": 16, "mask_convs": 1}
RESNET = {"family": "resnet_fpn", "backbone": "resnet18", "fpn_norm": "none"} | SMALL


def one_step(architecture: Architecture) -> list[str]:
    """Return the names of the weights that one step of training changes."""
    torch.manual_seed(0)
    model = build_maskrcnn(architecture, 2).train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1e-4)
    pixels = torch.randn(2, 3, 96, 96)
    target = {
        "boxes": torch.tensor([[8.0, 10.0, 40.0, 50.0], [50.0, 30.0, 90.0, 80.0]]),
        "labels": torch.tensor([1, 2]),
        "masks": torch.ones(2, 96, 96, dtype=torch.uint8),
    }
    sizes, targets = [(96, 96)] * 2, [target, target]
    features = model.backbone(pixels)
    proposals, losses = model.rpn(ImageList(pixels, sizes), features, targets)
    _, more = model.roi_heads(features, proposals, sizes, targets)
    assert ("loss_mask" in more) == architecture.masks
    total = sum([*losses.values(), *more.values()])
    assert torch.isfinite(total)
    total.backward()
    optimizer.step()
    after = model.state_dict()
    return [k for k, v in before.items() if not torch.equal(v, after[k])]


@pytest.mark.parametrize(
    "options",
    [
        {"backbone": "resnet18"},
        {"backbone_norm": "batch", "fpn_norm": "batch", "box_norm": "batch", "mask_norm": "none"},
        {"box_convs": 0, "box_fcs": 2, "rpn_convs": 2},
        {"box_convs": 4, "box_fcs": 1, "box_norm": "batch", "box_channels": 64},
        {"mask_size": 56, "mask_convs": 0, "mask_channels": 64},
        {"anchor_sizes_px": ((8, 12), (16, 24), (32, 48), (64, 96), (128, 192))},
        {"masks": False},
        RESNET,
        RESNET | {"backbone_norm": "batch", "box_fcs": 2, "box_convs": 0, "mask_size": 56},
        RESNET
        | {"backbone": "resnet50", "stride_in_1x1": True, "anchors_rounded": False}
        | {"anchor_offset": 0.5, "roi_aligned": True, "box_sampling_ratio": 0}
        | {"mask_sampling_ratio": 0, "roi_level_eps": 1e-8, "size_divisor": 32},
    ],
    ids=lambda options: " ".join(f"{k}={v}" for k, v in options.items() if k not in SMALL)[:60],
)
def test_options_train_and_detect(options, tiles):
    architecture = Architecture(**(SMALL | options))
    changed = one_step(architecture)
    trained = architecture.backbone_norm == "batch"
    statistics = [k for k in changed if k.endswith("running_mean") and "backbone.body" in k]
    assert bool(statistics) == trained, "frozen norms keep their statistics, others do not"
    for part in ("backbone.body", "backbone.fpn", "rpn.head", "roi_heads.box_head"):
        assert any(k.startswith(part) for k in changed), part
    assert architecture.masks == any(k.startswith("roi_heads.mask") for k in changed)
    card = replace(CARD, architecture=architecture.to_dict())
    detector = MaskRCNNDetector(build_maskrcnn(architecture, 2), card, device="cpu", min_score=0.0)
    found = detector(tiles[:1])[0]
    assert len(found) > 0
    assert found.masks.shape[1:] == (card.mask_size,) * 2
    assert card.mask_size == (architecture.mask_size if architecture.masks else 2)
    # the card's JSON gives it back, nested sizes too
    plain = json.loads(card.to_json())["architecture"]
    assert Architecture.from_dict(plain) == architecture


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"family": "vit"}, "family is 'vit'; expected one of timm_fpn, resnet_fpn"),
        ({"mask_size": 32}, "mask_size is 32; expected one of 28, 56"),
        ({"box_fcs": 0}, "box_fcs is 0; at least 1"),
        ({"anchor_sizes_px": (16, 32)}, "expected five, one a level"),
        ({"anchor_sizes_px": ((8, 9), (16,), (32,), (64,), (128,))}, "as many on each"),
        ({"stride_in_1x1": True}, "stride_in_1x1 is for family resnet_fpn only"),
        (RESNET | {"stride_in_1x1": True}, "needs bottlenecks; resnet18 has none"),
        (RESNET | {"backbone": "resnet51"}, "unknown backbone 'resnet51' of family resnet_fpn"),
        ({"fpn_channels": 40}, "multiples of 32, not 40"),
    ],
)
def test_architectures_that_make_no_sense(options, message):
    with pytest.raises(ModelError, match=message):
        build_maskrcnn(Architecture(**options), 2)


def test_anchors_in_metres():
    sizes = {"anchor_sizes_m": [2, 4, 8, 16, 32]}
    assert Architecture.from_dict(sizes, gsd_m=0.5).anchor_sizes_px == (4, 8, 16, 32, 64)
    pairs = Architecture.from_dict({"anchor_sizes_m": [[1, 2]] * 5}, gsd_m=0.5)
    assert pairs.anchor_sizes_px == ((2, 4),) * 5
    with pytest.raises(ModelError, match="anchor_sizes_m needs a gsd_m"):
        Architecture.from_dict(sizes)


def test_anchors_of_both_kinds():
    maps = [torch.zeros(1, 1, -(-100 // (4 << i)), -(-100 // (4 << i))) for i in range(5)]
    image = ImageList(torch.zeros(1, 3, 100, 100), [(100, 100)])
    sizes = ((30.0, 45.0), *((s, 1.5 * s) for s in (60.0, 120.0, 240.0, 480.0)))
    plain = Architecture(anchor_sizes_px=sizes)
    (rounded,) = PyramidAnchors(plain)(image, maps)
    (theirs,) = AnchorGenerator(sizes, ((0.5, 1.0, 2.0),) * 5)(image, maps)
    assert torch.equal(rounded, theirs)
    exact = replace(plain, anchors_rounded=False, anchor_offset=0.5)
    (found,) = PyramidAnchors(exact)(image, maps)
    assert found.shape == rounded.shape
    # the first cell: around (2, 2), sizes one after the other, each in all ratios
    first = found[:6].double()
    sides = first[:, 2:] - first[:, :2]
    assert torch.allclose(first[:, :2] + sides / 2, torch.tensor(2.0).double())
    assert torch.allclose(sides.prod(1), torch.tensor([900.0] * 3 + [2025.0] * 3).double())
    assert torch.allclose(sides[:, 1] / sides[:, 0], torch.tensor([0.5, 1, 2] * 2).double())
    # the last level has 2 x 2 cells, 64 px apart, where torchvision would put 50
    last = found[-24:]
    assert (last[6:12] - last[:6])[:, 0].tolist() == [64.0] * 6
    assert (rounded[-18:-12] - rounded[-24:-18])[:, 0].tolist() == [50.0] * 6


def test_tiles_are_padded_to_the_divisor(tiles):
    """A tile of any size gives what the same tile does with zeros around it."""
    options = Architecture(**(SMALL | {"size_divisor": 32}))
    card = replace(CARD, architecture=options.to_dict(), mean=(0.0,) * 3, std=(1.0,) * 3)
    odd = tiles[:1, :, :83, :101].copy()
    padded = np.zeros((1, 3, 96, 128), np.uint8)
    padded[:, :, :83, :101] = odd
    detector = MaskRCNNDetector(tiny_network(), card, device="cpu")
    assert torch.equal(detector._normalized(odd), detector._normalized(padded))
    (found,) = detector(odd)
    assert len(found) > 5
    assert found.boxes[:, [0, 2]].max() <= 101
    assert found.boxes[:, [1, 3]].max() <= 83


def test_an_object_is_its_box_without_masks(tiles):
    card = replace(CARD, architecture=replace(TINY, masks=False).to_dict())
    network = build_maskrcnn(replace(TINY, masks=False), 2)
    weights = {k: v for k, v in tiny_network().state_dict().items() if "mask" not in k}
    network.load_state_dict(weights)
    (found,) = MaskRCNNDetector(network, card, device="cpu")(tiles[:1])
    (masked,) = MaskRCNNDetector(tiny_network(), CARD, device="cpu")(tiles[:1])
    np.testing.assert_array_equal(found.boxes, masked.boxes)
    assert len(found) > 5
    window = Window(10, 20, 128, 96)
    tile = Tile(index=(0, 0), core=window, window=window)
    fragments = vectorize(found, tile, tile_row=0, raster_shape=(500, 500), min_area_px=0)
    assert len(fragments) == len(found)
    corners = found.boxes.astype(np.float64) + np.array([10, 20, 10, 20])
    boxes = shapely.box(*corners.T)
    apart = shapely.area(shapely.symmetric_difference(fragments.polygons, boxes))
    assert apart.max() < 1e-6


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
    how = {"device": "cpu", "precision": "float32"}
    together = MaskRCNNDetector(tiny_network(), CARD, **how, batch=3)(tiles)
    single = MaskRCNNDetector(tiny_network(), CARD, **how, batch=1)
    for i, one in enumerate(together):
        same(one, single(tiles[i : i + 1])[0])


def test_pixel_types_hold_the_same_values(tiles):
    detector = MaskRCNNDetector(tiny_network(), CARD, device="cpu", precision="float32")
    for dtype in (np.uint16, np.int16, np.float32):
        same(detector(tiles[:1].astype(dtype))[0], detector(tiles[:1])[0])
    wide = replace(CARD, value_range=(0.0, 25500.0))
    scaled = MaskRCNNDetector(tiny_network(), wide, device="cpu", precision="float32")
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
    roomy = replace(CARD, proposals=5000, rpn_pre_nms=5000)
    free = MaskRCNNDetector(tiny_network(), roomy, device="cpu", min_score=0.6)(tiles[:1])[0]
    assert len(free) > 5
    assert not free.saturated
    capped = replace(roomy, max_detections=5)
    found = MaskRCNNDetector(tiny_network(), capped, device="cpu", min_score=0.6)(tiles[:1])[0]
    assert len(found) == 5
    assert found.saturated
    # the best ones stay
    np.testing.assert_allclose(np.sort(found.scores), np.sort(free.scores)[-5:], atol=1e-5)


def objectness(model, bias):
    """Give every anchor about the same objectness."""
    with torch.no_grad():
        model.rpn.head.cls_logits.weight.mul_(0.1)
        model.rpn.head.cls_logits.bias.fill_(bias)
    return model


@pytest.mark.parametrize(
    ("bias", "limits", "saturated"),
    [
        # everything is an object: more of them than the heads are given
        (4.0, {"proposals": 60, "rpn_pre_nms": 5000}, True),
        # ... and more than one level ranks
        (4.0, {"proposals": 5000, "rpn_pre_nms": 100}, True),
        # room for all of them
        (4.0, {"proposals": 5000, "rpn_pre_nms": 5000}, False),
        # nothing is: the limits cut only what is none
        (-4.0, {"proposals": 60, "rpn_pre_nms": 100}, False),
    ],
)
def test_limits_of_the_proposals(tiles, bias, limits, saturated):
    card = replace(CARD, **limits)
    detector = MaskRCNNDetector(objectness(tiny_network(), bias), card, device="cpu", min_score=0.9)
    assert [found.saturated for found in detector(tiles)] == [saturated] * 3
    assert max(len(found) for found in detector(tiles)) < card.max_detections


def test_proposals_are_those_of_torchvision(tiles):
    network = tiny_network().eval()
    pixels = torch.from_numpy(tiles).float() / 127.5 - 1
    rpn = network.rpn
    rpn._pre_nms_top_n, rpn._post_nms_top_n = {"testing": 300}, {"testing": 60}
    card = replace(CARD, rpn_pre_nms=300)
    with torch.no_grad():
        features = network.backbone(pixels)
        wanted, _ = rpn(ImageList(pixels, [(96, 128)] * 3), features)
        found, _ = propose(rpn, pixels, features, (96, 128), card)
        by_logit, _ = propose(rpn, pixels, features, (96, 128), replace(card, rpn_by_logit=True))
    for one, other, third in zip(found, wanted, by_logit, strict=True):
        assert len(one) == 60
        torch.testing.assert_close(one, other, atol=0, rtol=0)
        torch.testing.assert_close(third, other, atol=0, rtol=0)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e38])
def test_pixels_that_are_not_finite(tiles, bad):
    detector = MaskRCNNDetector(tiny_network(), CARD, device="cpu")
    broken = tiles[:1].astype(np.float32)
    broken[:, :, 20:40, 30:60] = bad
    (found,) = detector(broken)
    assert np.isfinite(found.boxes).all()
    assert np.isfinite(found.masks).all()
    if bad != 1e38:
        # they count as 0, as pixels without data do
        zero = tiles[:1].copy()
        zero[:, :, 20:40, 30:60] = 0
        same(found, detector(zero)[0])


def test_outputs_that_are_not_finite(tiles):
    network = tiny_network()
    with torch.no_grad():
        network.roi_heads.mask_predictor.mask_fcn_logits.bias[1] = np.nan
        network.roi_heads.box_predictor.bbox_pred.bias[8:] = np.nan
    detector = MaskRCNNDetector(network, CARD, device="cpu")
    assert sum(len(f) for f in MaskRCNNDetector(tiny_network(), CARD, device="cpu")(tiles)) > 20
    # class 0 lost its masks, class 1 its boxes
    assert [len(f) for f in detector(tiles)] == [0, 0, 0]


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


@pytest.mark.skipif("buildings" not in shipped_models(), reason="no model is shipped")
def test_a_town_saturates_no_tile_of_the_shipped_model(tmp_path):
    """The proposals' limits are no more often in the way than the cap of detections, which is not."""
    town = render_town(tmp_path, width_px=1024, height_px=512, gsd_m=0.14, seed=3, density=1.4)
    with rasterio.open(town.image) as image:
        pixels = image.read([1, 2, 3])
    tiles = np.stack([pixels[:, :, :512], pixels[:, :, 512:]])
    found = load_model("buildings", device="cpu")(tiles)
    assert min(len(f) for f in found) > 5
    assert max(len(f) for f in found) < find_card("buildings").max_detections
    assert [f.saturated for f in found] == [False, False]


# --- a GPU that is full ----------------------------------------------------------------------


class SmallGpu(torch.nn.Module):
    """A backbone with room for so many tiles at once; for more it fails as a full GPU does."""

    def __init__(self, backbone, room: int, error: type[RuntimeError], text: str):
        super().__init__()
        self.backbone, self.room, self.raised = backbone, room, (error, text)
        self.seen: list[int] = []

    def forward(self, pixels):
        self.seen.append(len(pixels))
        if len(pixels) > self.room:
            error, text = self.raised
            raise error(text)
        return self.backbone(pixels)


def detector_with_room(room: int, batch: int, error=torch.cuda.OutOfMemoryError, text=None):
    how = {"device": "cpu", "precision": "float32"}
    detector = MaskRCNNDetector(tiny_network(), CARD, **how, batch=batch)
    text = text or "CUDA out of memory. Tried to allocate 2.00 GiB.\nSee documentation"
    gpu = SmallGpu(detector.model.backbone, room, error, text)
    detector.model.backbone = gpu
    return detector, gpu


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (torch.cuda.OutOfMemoryError, None),
        (RuntimeError, "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate`"),
    ],
)
def test_a_full_gpu_gets_fewer_tiles_and_the_same_is_found(caplog, error, text):
    tiles = np.random.default_rng(1).integers(0, 256, (9, 3, 96, 128), dtype=np.uint8)
    how = {"device": "cpu", "precision": "float32"}
    one_by_one = MaskRCNNDetector(tiny_network(), CARD, **how, batch=1)(tiles)
    detector, gpu = detector_with_room(2, 8, error, text)
    found = detector(tiles)
    # each tile once, in its order: nothing of the attempts that failed is kept
    assert gpu.seen == [8, 4, 2, 2, 2, 2, 1]
    assert detector.batch == 2
    assert "the GPU has no room for 8 tiles of 96 x 128 px at once; going on with 4" in caplog.text
    assert len(found) == len(tiles)
    assert sum(len(f) for f in found) > 20
    for got, wanted in zip(found, one_by_one, strict=True):
        same(got, wanted)
    # the next call begins with what had room
    gpu.seen.clear()
    detector(tiles[:4])
    assert gpu.seen == [2, 2]


def test_a_gpu_without_room_for_one_tile_says_so(tiles):
    detector, gpu = detector_with_room(0, 2)
    with pytest.raises(TileError, match=r"no room for one tile of 96 x 128 px \(CUDA out of mem"):
        detector(tiles)
    assert gpu.seen == [2, 1]


def test_other_failures_of_a_network_are_not_taken_for_a_full_gpu(tiles):
    detector, gpu = detector_with_room(1, 2, RuntimeError, "shapes cannot be multiplied")
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        detector(tiles)
    assert (gpu.seen, detector.batch) == ([2], 2)
