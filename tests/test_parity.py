"""The same weights give the same numbers as torchvision's own forward on the same pixels."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from calibrated import calibrate, picture
from torchvision.models import detection

from geoseg.jobs.supertile import DetectorSpec
from geoseg.models.cpu import bfloat16_pays
from geoseg.models.registry import load_model
from geoseg.records import Instances

NAMES = [
    "maskrcnn_resnet50_fpn",
    "maskrcnn_resnet50_fpn_v2",
    "fasterrcnn_resnet50_fpn",
    "fasterrcnn_resnet50_fpn_v2",
]
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SIZE = (128, 160)
MIN_SCORE = 0.3
CAP = 300
PROPOSALS = 160


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def normalized(tiles: np.ndarray) -> torch.Tensor:
    mean, std = (torch.tensor(x)[:, None, None] for x in (MEAN, STD))
    return (torch.from_numpy(tiles).float() / 255 - mean) / std


def theirs(name: str, size: tuple[int, int], **kwargs):
    """Return torchvision's network with a transform that changes nothing."""
    model = getattr(detection, name)(
        weights=None,
        weights_backbone=None,
        min_size=min(size),
        max_size=max(size),
        image_mean=[0.0, 0.0, 0.0],
        image_std=[1.0, 1.0, 1.0],
        box_detections_per_img=CAP,
        box_score_thresh=MIN_SCORE,
        rpn_post_nms_top_n_test=PROPOSALS,
        **kwargs,
    )
    # masks as they leave the network, not pasted into images
    model.transform.postprocess = lambda found, *_: found
    return model.eval()


def with_class(wanted: dict[str, torch.Tensor], outputs: tuple[int, ...]) -> Instances:
    """Return what torchvision found in a tile, without outputs that no class belongs to."""
    known = torch.isin(wanted["labels"], torch.tensor(outputs))
    n = int(known.sum())
    return Instances(
        boxes=wanted["boxes"][known].numpy(),
        scores=wanted["scores"][known].numpy(),
        labels=np.array([outputs.index(x) for x in wanted["labels"][known].tolist()]),
        masks=wanted["masks"][known][:, 0].numpy() if "masks" in wanted else np.ones((n, 2, 2)),
    )


def compare(found: Instances, wanted: Instances, atol: tuple[float, float, float]) -> None:
    """Compare the instances of a tile; `atol` is for boxes (px), scores and masks.

    Their order is left aside: rounding swaps what scores alike.
    """
    assert len(found) == len(wanted)
    apart = np.abs(found.boxes[:, None] - wanted.boxes[None]).max(2)
    apart += 1e3 * (found.labels[:, None] != wanted.labels[None])
    pick = apart.argmin(1)
    assert sorted(pick) == list(range(len(wanted)))
    assert apart.min(1).max() <= atol[0]
    np.testing.assert_allclose(found.scores, wanted.scores[pick], atol=atol[1], rtol=0)
    if wanted.masks.shape[1:] == (28, 28):
        np.testing.assert_allclose(found.masks, wanted.masks[pick], atol=atol[2], rtol=0)
    else:
        assert found.masks.shape == wanted.masks.shape


def differ(found: list[Instances]) -> None:
    """Assert that there is something to compare: dozens of confident, different objects."""
    scores = np.concatenate([f.scores for f in found])
    boxes = np.concatenate([f.boxes for f in found])
    sure = scores > 0.4
    assert sure.sum() >= 30
    assert len(np.unique(scores[sure].round(3))) >= 25
    assert len(np.unique(boxes[sure].round(0), axis=0)) >= 25
    sides = boxes[:, 2:] - boxes[:, :2]
    assert sides.max() > 3 * sides.min()
    assert len({x for f in found for x in f.labels.tolist()}) >= 5


LIMITS = {"min_score": MIN_SCORE, "max_detections": CAP, "proposals": PROPOSALS}


@pytest.mark.parametrize("name", NAMES)
def test_as_torchvision(name, tmp_path):
    tiles = picture(2, *SIZE)
    torch.manual_seed(0)
    model = theirs(name, SIZE)
    calibrate(model, normalized(tiles))
    path = tmp_path / "weights.pth"
    torch.save(model.state_dict(), path)
    with torch.no_grad():
        wanted = model(list(normalized(tiles)))
    assert max(len(w["boxes"]) for w in wanted) < CAP, "the cap binds outputs without a class too"
    ours = load_model(name, weights=path, device="cpu", exact=True, **LIMITS)
    ours.batch = 2
    found = ours(tiles)
    differ(found)
    assert len(ours.classes) == 80
    expected = [with_class(w, ours.card.class_outputs) for w in wanted]
    for one, other in zip(found, expected, strict=True):
        compare(one, other, (1e-3, 1e-4, 1e-3))
    if "mask" in name:
        assert np.concatenate([f.masks for f in found]).std() > 0.2
    # folded norms, another memory layout and sparse pooling are the same up to rounding, which may
    # turn a close decision of the NMS
    fast = load_model(path, device="cpu", precision="float32", **LIMITS)
    assert not [m for m in fast.model.modules() if "BatchNorm" in type(m).__name__], "all folded"
    agree(fast(tiles), expected, within=1e-2, share=0.95)
    # random weights know no objects, only boxes that score alike: bfloat16 turns more decisions
    # of the NMS here than with trained ones (docs/adr/0008)
    low = load_model(path, device="cpu", precision="bfloat16", **LIMITS)
    agree(low(tiles), expected, within=3, share=0.5)


def test_load_model_computes_as_at_home_and_a_run_fast(tmp_path):
    tiles = picture(1, 128, 160)
    torch.manual_seed(0)
    model = theirs("maskrcnn_resnet50_fpn", (128, 160))
    calibrate(model, normalized(tiles))
    path = tmp_path / "maskrcnn_resnet50_fpn.pth"
    torch.save(model.state_dict(), path)
    given = {"device": "cpu", "min_score": MIN_SCORE}
    home = load_model(path, **given)
    single = load_model(path, precision="float32", **given)
    fast = load_model(path, precision="fast", **given)
    spec = DetectorSpec(model=str(path), factory=None, given=None, threads=1, **given)
    run = spec.load()
    assert home.fingerprint == single.fingerprint != fast.fingerprint == run.fingerprint
    scores = [d(tiles)[0].scores for d in (home, single, fast, run)]
    assert len(scores[0]) > 0
    assert np.array_equal(scores[0], scores[1])
    assert np.array_equal(scores[2], scores[3])
    assert np.array_equal(scores[1], scores[2]) != bfloat16_pays()
    exact = replace(spec, precision="exact").load()
    assert exact.exact
    assert exact.fingerprint.endswith("exact=True")


def agree(found: list[Instances], expected: list[Instances], *, within: float, share: float):
    """Assert that a share of each finds its like in the other, px and score together."""
    for one, other in zip(found, expected, strict=True):
        apart = np.abs(one.boxes[:, None] - other.boxes[None]).max(2)
        apart += np.abs(one.scores[:, None] - other.scores[None])
        assert np.mean(apart.min(1) < within) > share
        assert np.mean(apart.min(0) < within) > share
