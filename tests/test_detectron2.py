"""Detectron2's checkpoints: the numbers of its own forward, and what is refused."""

from __future__ import annotations

import json
import pickle
import re
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from detectron2_forward import Forward, nested, random_checkpoint, small_config
from safetensors.torch import load_file

import geoseg
from geoseg.cli.main import main
from geoseg.errors import ModelError
from geoseg.models.convert import convert
from geoseg.models.detectron2 import (
    NO_CAP,
    card_of,
    coco_classes,
    detectron2_name,
    load_detectron2,
    read_detectron2,
)
from geoseg.models.detectron2_config import STANDARD_FILES, read_config
from geoseg.models.inference import MaskRCNNDetector
from geoseg.models.maskrcnn import Architecture, build_maskrcnn

ZOO = "COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_3x.yaml"


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Threads that wait for each other on a busy machine make small networks slow."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def picture(height, width, seed=1):
    """Return (3, H, W) uint8 blobs and noise; no side is a multiple of 32."""
    g = torch.Generator().manual_seed(seed)
    rough = torch.randint(0, 256, (1, 3, height // 7, width // 7), generator=g).float()
    smooth = torch.nn.functional.interpolate(rough, size=(height, width), mode="bilinear")[0]
    return (smooth + 10 * torch.randn(smooth.shape, generator=g)).clamp(0, 255).byte()


IMAGES = [picture(150, 203), picture(97, 333, seed=2)]


def write(folder, weights, cfg, name="model_final.pth", **extra):
    """Write a checkpoint and its config.yaml; return both paths."""
    path = folder / name
    if path.suffix == ".pkl":
        arrays = {k: v.numpy() for k, v in weights.items()}
        path.write_bytes(pickle.dumps({"model": arrays, **extra}, protocol=2))
    else:
        torch.save({"model": weights, **extra}, path)
    config = folder / "config.yaml"
    config.write_text(yaml.safe_dump(nested(cfg)), encoding="utf-8")
    return path, config


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """Return a small checkpoint, its configuration, and what is in them."""
    cfg = small_config()
    weights = random_checkpoint(cfg, IMAGES[0])
    return *write(tmp_path_factory.mktemp("small"), weights, cfg), weights, cfg


# --- the same numbers ------------------------------------------------------------------------

CASES = {
    "msra": {},
    "r101_torch": {"depth": 101, "stride_in_1x1": False, "pixel_std": [57.375, 57.12, 58.395]},
    "boxes_only": {"mask_on": False, "num_classes": 1, "detections_per_image": -1},
    "not_aligned": {
        "roi_box_head__pooler_type": "ROIAlign",
        "roi_mask_head__pooler_type": "ROIAlign",
        "roi_box_head__pooler_sampling_ratio": 2,
        "roi_mask_head__pooler_sampling_ratio": 3,
        "offset": 0.5,
    },
    "aligned_two_samples": {"roi_box_head__pooler_sampling_ratio": 2, "offset": 0.25},
    "agnostic": {"cls_agnostic_bbox_reg": True, "cls_agnostic_mask": True, "num_classes": 5},
    "agnostic_masks": {"cls_agnostic_mask": True, "format": "RGB"},
    "anchors": {
        "sizes": [[16, 24], [32, 40], [64, 80], [128, 150], [200, 256]],
        "aspect_ratios": [[0.4, 1.0, 1.7]],
        "conv_dims": [-1, 48],
        "roi_box_head__pooler_resolution": 5,
    },
    "averaged": {"fuse_type": "avg"},
    "group_norms": {
        "fpn__out_channels": 64,
        "fpn__norm": "GN",
        "fuse_type": "avg",
        "roi_box_head__num_conv": 2,
        "roi_box_head__conv_dim": 32,
        "roi_box_head__norm": "GN",
        "num_fc": 1,
        "roi_mask_head__norm": "GN",
        "roi_mask_head__conv_dim": 32,
    },
    "batch_norms": {"resnets__norm": "SyncBN", "fpn__norm": "BN", "min_size": 9},
    "four_convs": {"roi_box_head__num_conv": 4, "num_fc": 1, "roi_mask_head__num_conv": 4},
    "rpn_widths": {"conv_dims": [32, -1, 40], "nms_thresh_test": 0.6},
    "rpn_width": {"conv_dims": [64]},
    "all_group_norms": {
        "resnets__norm": "GN",
        "stem_out_channels": 32,
        "width_per_group": 32,
        "fpn__out_channels": 32,
        "fpn__norm": "GN",
    },
    "three_fcs": {"num_fc": 3, "fc_dim": 50, "roi_mask_head__num_conv": 0},
    "resnext": {"num_groups": 4, "width_per_group": 6, "stride_in_1x1": False},
    "r18": {"depth": 18, "fpn__out_channels": 40},
    "usual_widths": {"res2_out_channels": 256, "stem_out_channels": 64, "width_per_group": 64},
    "coder": {
        "rpn__bbox_reg_weights": [2.0, 2.0, 1.0, 1.0],
        "roi_box_head__bbox_reg_weights": [5.0, 8.0, 4.0, 3.0],
    },
    "few": {"detections_per_image": 25, "score_thresh_test": 0.3, "nms_thresh_test": 0.3},
    "many": {
        "detections_per_image": 500,
        "pre_nms_topk_test": 1000,
        "post_nms_topk_test": 350,
        "rpn__nms_thresh": 0.8,
        "num_classes": 7,
    },
}  # fmt: skip


def same_detections(found, wanted):
    """Compare `Instances` with boxes, scores, classes and masks; ties may change places."""
    boxes, scores, classes, masks = wanted
    assert len(found) == len(boxes)
    np.testing.assert_array_equal(
        np.bincount(found.labels, minlength=99), np.bincount(classes, minlength=99)
    )
    np.testing.assert_allclose(found.scores, scores, atol=1e-3)  # both are in order
    far = np.abs(found.boxes[:, None] - boxes.numpy()[None]).max(2)
    far = far + 1000 * (found.labels[:, None] != classes.numpy()[None])
    far = far + 10 * np.abs(found.scores[:, None] - scores.numpy()[None])
    order = far.argmin(1)
    assert len(set(order.tolist())) == len(order)
    np.testing.assert_allclose(found.boxes, boxes.numpy()[order], atol=0.05)
    np.testing.assert_allclose(found.scores, scores.numpy()[order], atol=1e-3)
    if masks is not None:
        np.testing.assert_allclose(found.masks, masks.numpy()[order], atol=1e-2)


@pytest.mark.parametrize("case", CASES)
def test_the_numbers_are_those_of_detectron2(tmp_path, case):
    cfg = small_config(**CASES[case])
    if case == "r18":
        cfg |= {"MODEL.RESNETS.WIDTH_PER_GROUP": 64}
    weights = random_checkpoint(cfg, IMAGES[0], seed=3)
    detector = geoseg.load_model(
        write(tmp_path, weights, cfg)[0],
        config=tmp_path / "config.yaml",
        device="cpu",
        exact=True,
    )
    forward = Forward(weights, cfg)
    for image in IMAGES:
        wanted = forward(image)
        n_classes, cap = cfg["MODEL.ROI_HEADS.NUM_CLASSES"], cfg["TEST.DETECTIONS_PER_IMAGE"]
        # the comparison is worth something: many objects, of all classes, sure and unsure ones
        assert len(wanted[0]) >= (25 if case == "few" else 50)
        assert len(wanted[2].unique()) == n_classes
        assert wanted[1].max() > 0.95
        found = detector(image[None].numpy())[0]
        same_detections(found, wanted)
        if cap > 0:
            assert found.saturated or len(found) < cap
        if wanted[3] is None:
            assert found.masks.min() > 0.5
        else:
            assert 0.1 < float((wanted[3] > 0.5).float().mean()) < 0.9


def test_boxes_pushed_out_of_the_image(tmp_path):
    # deltas so large that many boxes have no width left once they are clipped: Detectron2 counts
    # them against the cap, and drops them afterwards
    cfg = small_config(detections_per_image=60)
    weights = random_checkpoint(cfg, IMAGES[0], seed=5)
    weights["roi_heads.box_predictor.bbox_pred.weight"] *= 5
    detector = load_detectron2(*write(tmp_path, weights, cfg), device="cpu", exact=True)
    wanted = Forward(weights, cfg)(IMAGES[0])
    assert 20 < len(wanted[0]) < 60, "some are dropped behind the cap"
    found = detector(IMAGES[0][None].numpy())[0]
    same_detections(found, wanted)


def test_a_batch_is_its_tiles_one_by_one(small):
    path, config, _, _ = small
    tiles = torch.stack([picture(150, 203, seed) for seed in (1, 4, 5)]).numpy()
    card, _ = read_detectron2(path, config)
    one = load_detectron2(path, config, device="cpu", exact=True)
    three = MaskRCNNDetector(one.model, card, device="cpu", batch=3, exact=True)
    for got, tile in zip(three(tiles), tiles, strict=True):
        want = one(tile[None])[0]
        same_detections(
            got, [torch.from_numpy(v) for v in (want.boxes, want.scores, want.labels, want.masks)]
        )


@pytest.mark.parametrize("change", ["flip", "roll", "offset", "aligned", "strict", "eps"])
def test_the_comparison_notices(small, change):
    # each step that is easily got wrong, done wrong: the numbers must then differ
    path, config, weights, cfg = small
    card, converted = read_detectron2(path, config)
    parts = dict(card.architecture)
    if change == "flip":
        converted["backbone.body.conv1.weight"] = converted["backbone.body.conv1.weight"].flip(1)
    elif change == "roll":
        key = "roi_heads.mask_predictor.mask_fcn_logits.weight"
        converted[key] = converted[key].roll(1, 0)
    elif change == "offset":
        parts["anchor_offset"] = 0.5
    elif change == "aligned":
        parts["roi_aligned"] = False
    elif change == "strict":
        parts["size_divisor"] = 1
    else:
        parts["norm_eps"] = 1e-2
    model = build_maskrcnn(Architecture.from_dict(parts), len(card.classes))
    model.load_state_dict(converted, strict=False)
    wrong = MaskRCNNDetector(model, replace(card, architecture=parts), device="cpu")
    with pytest.raises(AssertionError):
        same_detections(wrong(IMAGES[0][None].numpy())[0], Forward(weights, cfg)(IMAGES[0]))


# --- conversion ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["model_final.pth", "model_final_abc.pkl"])
def test_what_goes_in_comes_out(tmp_path, small, name):
    _, _, weights, cfg = small
    path, config = write(
        tmp_path, weights, cfg, name, __author__="Detectron2 Model Zoo", matching_heuristics=True
    )
    out = tmp_path / "model.safetensors"
    card = convert(path, out, config=config, classes=["roof", "tree", "pool"], gsd_m=0.1)
    stored = load_file(out)
    architecture = Architecture.from_dict(card.architecture)
    back = {detectron2_name(key, architecture): value for key, value in stored.items()}
    assert set(back) == set(weights)
    for key, value in weights.items():
        got = back[key]
        if key == "backbone.bottom_up.stem.conv1.weight":
            got = got[:, [2, 1, 0]]
        elif "cls_score" in key:
            got = torch.cat([got[1:], got[:1]])
        elif "bbox_pred" in key:
            assert not got[:4].any()
            got = got[4:]
        elif "mask_head.predictor" in key:
            assert not got[:1].any()
            got = got[1:]
        assert torch.equal(got, value), key
    assert (card.classes, card.gsd_m, card.name) == (("roof", "tree", "pool"), 0.1, "model")
    assert card.licence == "CC-BY-SA-3.0"
    assert "Detectron2 model zoo" in card.credits[0]
    # the same bytes in, the same bytes out
    again = tmp_path / "again" / "model.safetensors"
    again.parent.mkdir()
    convert(path, again, config=config, classes=["roof", "tree", "pool"], gsd_m=0.1)
    assert again.read_bytes() == out.read_bytes()
    assert again.with_suffix(".json").read_bytes() == out.with_suffix(".json").read_bytes()
    # and the model finds what the checkpoint found
    found = geoseg.load_model(out, device="cpu", exact=True)(IMAGES[0][None].numpy())[0]
    same_detections(found, Forward(weights, cfg)(IMAGES[0]))


def test_convert_on_the_command_line(tmp_path, small, capsys):
    path, config, _, _ = small
    out = tmp_path / "trees.safetensors"
    args = ["convert", str(path), "--config", str(config), "-o", str(out)]
    assert main([*args, "--classes", "roof, tree,pool", "--gsd", "0.2", "--licence", "MIT"]) == 0
    assert capsys.readouterr().out.strip() == str(out)
    card = json.loads(out.with_suffix(".json").read_text(encoding="utf-8"))
    assert (card["classes"], card["gsd_m"]) == (["roof", "tree", "pool"], 0.2)
    assert card["licence"] == "MIT"
    assert card["training"]["converted_from"]["file"] == "model_final.pth"
    assert main(args) == 2
    assert "trees.safetensors exists; choose another name" in capsys.readouterr().err
    assert main([*args, "--overwrite"]) == 0
    assert json.loads(out.with_suffix(".json").read_text())["classes"][2] == "class_2"
    for more, message in (
        (["--classes", "a,b"], "2 classes are named, but .* tells 3 apart"),
        (["--classes", "a,b,a"], "expected a different name for each"),
        (["-o", str(tmp_path / "x.onnx")], "expected one ending in .safetensors"),
        (["--config", str(tmp_path / "none.yaml")], "none.yaml does not exist"),
    ):
        assert main([*args, "--overwrite", *more]) == 2
        err = capsys.readouterr().err
        assert re.search(message, err), err
    # a converted model converts again, to the same weights
    again = tmp_path / "again.safetensors"
    assert main(["convert", str(out), "-o", str(again), "--gsd", "0.3"]) == 0
    assert again.read_bytes() == out.read_bytes()


def test_names_of_every_part():
    for depth in (18, 34, 50, 101, 152):
        basic = depth in (18, 34)
        cfg = small_config(
            depth=depth, fpn__out_channels=64, fpn__norm="GN", roi_box_head__num_conv=3,
            roi_box_head__conv_dim=32, roi_box_head__norm="GN", conv_dims=[-1, -1],
            roi_mask_head__norm="GN", roi_mask_head__conv_dim=32,
            width_per_group=64 if basic else 16,
        )  # fmt: skip
        architecture = Architecture.from_dict(card_of(_settings(cfg), "x").architecture)
        ours = [k for k in build_maskrcnn(architecture, 3).state_dict() if "num_batches" not in k]
        theirs = [detectron2_name(k, architecture) for k in ours]
        assert len(set(theirs)) == len(ours)
        assert set(theirs) == set(random_checkpoint(cfg, IMAGES[0][:, :60, :70]))


def _settings(cfg):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "config.yaml"
        path.write_text(yaml.safe_dump(nested(cfg)), encoding="utf-8")
        return read_config(path)


def test_fingerprints_tell_configurations_apart(tmp_path, small):
    path, _, weights, cfg = small
    first = load_detectron2(path, small[1], device="cpu").fingerprint
    _, config = write(tmp_path, weights, {**cfg, "MODEL.ROI_HEADS.NMS_THRESH_TEST": 0.4})
    assert load_detectron2(path, config, device="cpu").fingerprint != first
    assert load_detectron2(path, small[1], device="cpu").fingerprint == first


def test_weights_that_do_not_fit(tmp_path, small):
    _, _, weights, cfg = small

    def error(changed, **settings):
        path, config = write(tmp_path, changed, cfg | settings)
        with pytest.raises(ModelError) as caught:
            load_detectron2(path, config, device="cpu")
        return str(caught.value)

    less = {k: v for k, v in weights.items() if "anchor_deltas" not in k}
    text = error(less)
    assert "2 weights missing: proposal_generator.rpn_head.anchor_deltas.bias, prop" in text
    assert "expected a detectron2 mask r-cnn" in text.lower()
    text = error(weights | {"roi_heads.keypoint_head.x.weight": torch.zeros(2)})
    assert "1 unknown: roi_heads.keypoint_head.x.weight" in text
    text = error(weights, **{"MODEL.ROI_HEADS.NUM_CLASSES": 4})
    assert "roi_heads.box_predictor.bbox_pred.bias (12,) instead of (16,)" in text
    assert "6 of other shape" in text
    text = error(weights, **{"MODEL.MASK_ON": False})
    assert "8 unknown: roi_heads.mask_head.deconv.bias" in text
    text = error(weights, **{"MODEL.RESNETS.DEPTH": 101})
    assert "weights missing: backbone.bottom_up.res4.10.conv1" in text
    text = error({k.replace(".", "_") + "_w": v for k, v in weights.items()})
    assert "the names are Caffe2's: a model of the first Detectron is not supported" in text


def test_what_older_checkpoints_repeat(tmp_path, small):
    _, _, weights, cfg = small
    mean = torch.tensor(cfg["MODEL.PIXEL_MEAN"])[:, None, None]
    cells = "proposal_generator.anchor_generator.cell_anchors."
    side = torch.tensor([16.0, 16.0, 16.0])
    ratio = torch.tensor([0.5, 1, 2]).sqrt()
    anchors = torch.stack([-side / ratio, -side * ratio, side / ratio, side * ratio], 1) / 2
    more = {"pixel_mean": mean, "pixel_std": torch.ones(3, 1, 1), cells + "0": anchors}
    detector = load_detectron2(*write(tmp_path, weights | more, cfg), device="cpu", exact=True)
    same_detections(detector(IMAGES[0][None].numpy())[0], Forward(weights, cfg)(IMAGES[0]))
    for wrong in ({"pixel_mean": mean.flip(0)}, {cells + "0": anchors * 2}):
        with pytest.raises(ModelError, match="is not the configuration of this training"):
            load_detectron2(*write(tmp_path, weights | wrong, cfg), device="cpu")


def test_names_and_norms_that_detectron2_completes(tmp_path, small):
    _, _, weights, cfg = small
    wanted = Forward(weights, cfg)(IMAGES[0])
    wrapped = {f"module.{k}": v for k, v in weights.items()}
    short = {k.replace("backbone.bottom_up.", ""): v for k, v in weights.items()}
    for changed in (wrapped, short):
        detector = load_detectron2(*write(tmp_path, changed, cfg), device="cpu", exact=True)
        same_detections(detector(IMAGES[0][None].numpy())[0], wanted)
    # Caffe2's frozen norms are a scale and a shift; Detectron2 adds a mean of 0, a variance of 1
    bare = {k: v for k, v in weights.items() if "running" not in k}
    full = {
        k: torch.zeros_like(v) if "running_mean" in k else torch.ones_like(v) if "running_var" in k else v
        for k, v in weights.items()
    }  # fmt: skip
    detector = load_detectron2(*write(tmp_path, bare, cfg), device="cpu", exact=True)
    same_detections(detector(IMAGES[0][None].numpy())[0], Forward(full, cfg)(IMAGES[0]))


# --- configuration ---------------------------------------------------------------------------


def test_the_standard_files_are_known_without_a_file():
    settings = read_config(ZOO)
    card = card_of(settings, "zoo")
    assert len(card.classes) == 80
    assert (card.classes[0], card.classes[-1]) == ("person", "toothbrush")
    assert card.classes[56] == "chair"
    assert (card.min_score, card.nms_iou, card.max_detections) == (0.05, 0.5, 100)
    assert (card.rpn_pre_nms, card.proposals, card.rpn_nms_iou) == (1000, 1000, 0.7)
    assert card.strict_score
    assert card.gsd_m is None
    assert card.resize_hint == {"shortest_side_px": 800, "longest_side_px": 1333}
    np.testing.assert_allclose(np.array(card.mean) * 255, [123.675, 116.28, 103.53])
    np.testing.assert_allclose(np.array(card.std) * 255, [1, 1, 1])
    a = Architecture.from_dict(card.architecture)
    assert (a.backbone, a.stride_in_1x1, a.masks) == ("resnet50", True, True)
    assert (a.box_fcs, a.box_features, a.mask_convs, a.mask_channels) == (2, 1024, 4, 256)
    assert a.anchors == ((32,), (64,), (128,), (256,), (512,))
    big = Architecture.from_dict(
        card_of(read_config("mask_rcnn_X_101_32x8d_FPN_3x.yaml"), "x").architecture
    )
    assert (big.backbone, big.groups, big.width_per_group) == ("resnet101", 32, 8)
    assert not big.stride_in_1x1
    for name in STANDARD_FILES:
        if not name.startswith("Base"):
            masks = name.startswith("mask")
            assert (
                Architecture.from_dict(card_of(read_config(name), "x").architecture).masks == masks
            )
    assert len(set(coco_classes())) == 80


def test_files_that_build_upon_files(tmp_path):
    (tmp_path / "sub").mkdir()
    # the names of the standard files stand for them where no such file is there
    (tmp_path / "sub" / "mine.yaml").write_text(
        '_BASE_: "../Base-RCNN-FPN.yaml"\nMODEL:\n  MASK_ON: True\n  ROI_HEADS: {NUM_CLASSES: 3}\n'
        "TEST:\n  DETECTIONS_PER_IMAGE: 300\n"
    )
    (tmp_path / "more.yaml").write_text(
        "_BASE_: sub/mine.yaml\nMODEL:\n  RESNETS: {DEPTH: 101}\n  ROI_HEADS: {NUM_CLASSES: 2}\n"
        "  PIXEL_STD: (58.0, 57.0, 56.0)\nSOLVER: {BASE_LR: 1e-3}\nINPUT: {FORMAT: RGB}\n"
        "  # a tuple as text and a number without a point are what they are in Detectron2\n"
    )
    card = card_of(read_config(tmp_path / "more.yaml"), "x")
    assert (len(card.classes), card.max_detections) == (2, 300)
    assert card.architecture["backbone"] == "resnet101"
    np.testing.assert_allclose(np.array(card.std) * 255, [58, 57, 56])
    assert card.rpn_pre_nms == 1000
    # a file of that name that is there counts
    (tmp_path / "Base-RCNN-FPN.yaml").write_text("_BASE_: [a.yaml, b.yaml]\n")
    (tmp_path / "a.yaml").write_text(yaml.safe_dump(nested(small_config())))
    (tmp_path / "b.yaml").write_text("MODEL: {RPN: {PRE_NMS_TOPK_TEST: 77}}\n")
    assert card_of(read_config(tmp_path / "more.yaml"), "x").rpn_pre_nms == 77
    (tmp_path / "b.yaml").write_text("_BASE_: more.yaml\n")
    with pytest.raises(ModelError, match="_BASE_ leads in a circle"):
        read_config(tmp_path / "more.yaml")
    (tmp_path / "b.yaml").write_text("_BASE_: ../nowhere.yaml\n")
    with pytest.raises(ModelError, match=r"_BASE_ is ../nowhere.yaml, and .*nowhere.yaml does not"):
        read_config(tmp_path / "more.yaml")
    (tmp_path / "b.yaml").write_text("_BASE_: 5\n")
    with pytest.raises(ModelError, match="_BASE_ is 5; expected the name of a file"):
        read_config(tmp_path / "b.yaml")


def test_a_full_dump_of_detectron2_is_understood(tmp_path, small):
    # Detectron2 writes all its keys, those of other models and of the training too
    path, _, weights, cfg = small
    tree = nested(cfg)
    tree["MODEL"] |= {
        "DEVICE": "cuda", "WEIGHTS": "x.pkl", "KEYPOINT_ON": False, "LOAD_PROPOSALS": False,
        "RETINANET": {"NUM_CLASSES": 80, "IOU_LABELS": [0, -1, 1]},
        "ROI_BOX_CASCADE_HEAD": {"IOUS": [0.5, 0.6, 0.7]},
        "PANOPTIC_FPN": {"COMBINE": {"ENABLED": True}},
        "SEM_SEG_HEAD": {"NAME": "SemSegFPNHead"}, "ROI_KEYPOINT_HEAD": {"NUM_KEYPOINTS": 17},
    }  # fmt: skip
    tree["MODEL"]["RPN"] |= {"BATCH_SIZE_PER_IMAGE": 256, "HEAD_NAME": "StandardRPNHead"}
    tree |= {"SOLVER": {"BASE_LR": 0.1, "AMP": {"ENABLED": False}}, "OUTPUT_DIR": "./output"}
    tree["DATASETS"] = {"TRAIN": ["trees"]}
    (tmp_path / "dump.yaml").write_text(yaml.safe_dump(tree), encoding="utf-8")
    detector = load_detectron2(path, tmp_path / "dump.yaml", device="cpu", exact=True)
    same_detections(detector(IMAGES[0][None].numpy())[0], Forward(weights, cfg)(IMAGES[0]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ROI_HEADS.NAME": "Res5ROIHeads"}, "is a C4 model .* use a model with FPN"),
        ({"RESNETS.RES5_DILATION": 2}, "is a DC5 model .* use a model with FPN"),
        ({"ROI_HEADS.NAME": "CascadeROIHeads"}, "ROI_HEADS.NAME is 'CascadeROIHeads'; expected 'Stand"),
        ({"META_ARCHITECTURE": "RetinaNet"}, "META_ARCHITECTURE is 'RetinaNet'; expected 'General"),
        ({"BACKBONE.NAME": "build_mnv2_fpn_backbone"}, "BACKBONE.NAME is 'build_mnv2_fpn_backbone'"),
        ({"KEYPOINT_ON": True}, "KEYPOINT_ON is True; expected False"),
        ({"RESNETS.DEFORM_ON_PER_STAGE": [False, True, True, True]}, "DEFORM_ON_PER_STAGE is"),
        ({"RESNETS.DEPTH": 200}, "DEPTH is 200; expected 18, 34, 50, 101 or 152"),
        ({"RESNETS.DEPTH": "50a"}, "DEPTH is '50a'; expected a whole number"),
        ({"RESNETS.NORM": "LN"}, "RESNETS.NORM is 'LN'; expected one of 'FrozenBN', 'BN'"),
        ({"RESNETS.NORM": "GN"}, "group norm needs widths that are multiples of 32, not 16"),
        ({"RESNETS.RES2_OUT_CHANNELS": 65}, "RES2_OUT_CHANNELS is 65; expected a multiple of 4"),
        ({"FPN.NORM": "LN"}, "FPN.NORM is 'LN'; expected one of '', 'GN'"),
        ({"FPN.FUSE_TYPE": "max"}, "FUSE_TYPE is 'max'; expected 'sum' or 'avg'"),
        ({"FPN.IN_FEATURES": ["res3", "res4", "res5"]}, "FPN.IN_FEATURES is"),
        ({"RPN.IN_FEATURES": ["p2", "p3"]}, "RPN.IN_FEATURES is"),
        ({"RPN.CONV_DIMS": [0]}, r"CONV_DIMS is \[0\]; expected -1 or a number of channels"),
        ({"RPN.NMS_THRESH": 7}, "RPN.NMS_THRESH is 7; expected a number from 0 to 1"),
        ({"RPN.BBOX_REG_WEIGHTS": [1, 2]}, "BBOX_REG_WEIGHTS is .* expected 4 numbers"),
        ({"ANCHOR_GENERATOR.NAME": "RotatedAnchorGenerator"}, "ANCHOR_GENERATOR.NAME is 'Rotated"),
        ({"ANCHOR_GENERATOR.SIZES": [[32], [64]]}, "equally many positive numbers for each of 5"),
        ({"ANCHOR_GENERATOR.SIZES": [["a"]]}, "expected a list of numbers for each of the 5"),
        ({"ANCHOR_GENERATOR.ASPECT_RATIOS": [[1], [1], [1], [2], [1]]}, "the same on every level"),
        ({"ANCHOR_GENERATOR.OFFSET": 1.5}, "OFFSET is 1.5; expected a number from 0 to 1"),
        ({"ROI_BOX_HEAD.POOLER_TYPE": "ROIPool"}, "POOLER_TYPE is 'ROIPool'; expected one of 'ROIAlignV2'"),
        ({"ROI_MASK_HEAD.POOLER_TYPE": "ROIAlign"}, "expected that of MODEL.ROI_BOX_HEAD"),
        ({"ROI_BOX_HEAD.POOLER_RESOLUTION": 700}, "POOLER_RESOLUTION is 700; expected a whole"),
        ({"ROI_MASK_HEAD.POOLER_RESOLUTION": 28}, "POOLER_RESOLUTION is 28; expected 14"),
        ({"ROI_MASK_HEAD.NAME": "PointRendMaskHead"}, "ROI_MASK_HEAD.NAME is 'PointRendMaskHead'"),
        ({"ROI_BOX_HEAD.NUM_FC": 0}, "NUM_FC is 0; expected a whole number from 1"),
        ({"ROI_BOX_HEAD.USE_SIGMOID_CE": True}, "USE_SIGMOID_CE is True; expected False"),
        ({"ROI_HEADS.SCORE_THRESH_TEST": "high"}, "SCORE_THRESH_TEST is 'high'"),
        ({"MASK_ON": "yes"}, "MASK_ON is 'yes'; expected True or False"),
        ({"PIXEL_MEAN": [1, 2, 3, 4, 5]}, "PIXEL_MEAN is .* expected 3 numbers"),
        ({"PIXEL_STD": [1, 0, 1]}, "expected three numbers above 0"),
        ({"POINT_HEAD.NUM_CLASSES": 3, "ROI_HEADS.NUM_CLASS": 3}, "does not have|do not have: MODEL.POINT_HEAD.NUM_CLASSES, MODEL.ROI_HEADS.NUM_CLASS"),
    ],
)  # fmt: skip
def test_configurations_that_are_refused(tmp_path, small, change, message):
    _, _, weights, cfg = small
    changed = cfg | {f"MODEL.{key}": value for key, value in change.items()}
    with pytest.raises(ModelError, match=message) as error:
        load_detectron2(*write(tmp_path, weights, changed), device="cpu")
    assert "config.yaml" in str(error.value) or "architecture:" in str(error.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"INPUT.FORMAT": "YUV-BT.601"}, "INPUT.FORMAT is 'YUV-BT.601'; expected BGR or RGB"),
        ({"TEST.DETECTIONS_PER_IMAGE": 0}, "DETECTIONS_PER_IMAGE is 0; expected at least 1"),
        ({"VERSION": 1}, "is a configuration of VERSION 1; expected 2"),
    ],
)
def test_other_settings_that_are_refused(change, message):
    with pytest.raises(ModelError, match=message):
        card_of(_settings(small_config() | change), "x")
    assert card_of(_settings(small_config(detections_per_image=-1)), "x").max_detections == NO_CAP


def test_c4_and_dc5_are_refused_by_the_name_of_their_base(tmp_path):
    for base, message in (
        ("Base-RCNN-C4.yaml", "is a C4 model"),
        ("Base-RCNN-DilatedC5.yaml", "is a DC5 model"),
    ):
        (tmp_path / "x.yaml").write_text(f"_BASE_: {base}\nMODEL: {{MASK_ON: True}}\n")
        with pytest.raises(ModelError, match=message):
            card_of(read_config(tmp_path / "x.yaml"), "x")


@pytest.mark.parametrize(
    "tag",
    [
        "!!python/object/apply:os.system ['touch {mark}']",
        "!!python/object/new:os.system ['touch {mark}']",
        "!!python/name:os.system",
        "!!python/module:os",
        "!!python/tuple [1, 2]",
    ],
)
def test_yaml_cannot_call_anything(tmp_path, small, tag):
    mark = tmp_path / "ran"
    (tmp_path / "evil.yaml").write_text(f"MODEL:\n  MASK_ON: {tag.format(mark=mark)}\n")
    with pytest.raises(ModelError, match=r"evil.yaml is not YAML of plain values"):
        geoseg.load_model(small[0], config=tmp_path / "evil.yaml")
    assert not mark.exists()
    if "apply" in tag:
        yaml.unsafe_load((tmp_path / "evil.yaml").read_text())
        assert mark.exists(), "the payload is real"


def test_yaml_that_is_none(tmp_path):
    path = tmp_path / "x.yaml"
    # lists of lists, each eight times the one before
    laughs = "a: &a [1, 1]\n"
    laughs += "".join(
        f"{k}: &{k} [{', '.join(['*' + j] * 8)}]\n" for j, k in ("ab", "bc", "cd", "de", "ef")
    )
    for text, message in (
        ("MODEL: [", "is not YAML of plain values"),
        ("- 1\n- 2\n", "is no configuration; expected a table of sections"),
        ("MODEL: {PIXEL_MEAN: &a [*a, *a]}\n", "more than 20,000 values"),
        ("MODEL: &a {X: *a}\n", "more than 20,000 values"),
        (laughs, "more than 20,000 values"),
        ("# " + "x" * 1_000_001, "1,000,003 bytes; 1,000,000 is the limit"),
        ("MODEL: {WEIGHT: x.pkl}\n", "is a configuration of VERSION 1"),
    ):  # fmt: skip
        path.write_text(text)
        with pytest.raises(ModelError, match=message):
            read_config(path)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ModelError, match="is not YAML of plain values"):
        read_config(path)
