"""Detectron2's GeneralizedRCNN with FPN, restated in plain torch from its source (v0.6).

Nothing here comes from geoseg or from torchvision: convolutions and norms are those of
``torch.nn.functional``; anchors, decoding, ROIAlign, NMS and the order of the steps are written
out as Detectron2's source states them. Settings are dotted keys of its config, all of them given.
Read: modeling/meta_arch/rcnn.py, modeling/backbone/{resnet,fpn}.py, modeling/anchor_generator.py,
modeling/box_regression.py, modeling/proposal_generator/{rpn,proposal_utils}.py, modeling/poolers.py,
modeling/roi_heads/{box_head,fast_rcnn,mask_head}.py, modeling/postprocessing.py, structures/boxes.py,
layers/{batch_norm,roi_align}.py, and the operator that roi_align.py calls.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

BLOCKS = {
    18: (2, 2, 2, 2),
    34: (3, 4, 6, 3),
    50: (3, 4, 6, 3),
    101: (3, 4, 23, 3),
    152: (3, 8, 36, 3),
}
STRIDES = (4, 8, 16, 32, 64)
SCALE_CLAMP = math.log(1000.0 / 16)


class Forward:
    """A model: ``weights`` by Detectron2's names, ``cfg`` by dotted keys."""

    def __init__(self, weights, cfg):
        self.w, self.cfg = weights, cfg

    # --- layers ------------------------------------------------------------------------------

    def conv(self, x, name, stride=1, padding=0, groups=1):
        """Convolution, and the norm that bears its name."""
        x = F.conv2d(
            x, self.w[f"{name}.weight"], self.w.get(f"{name}.bias"), stride, padding, 1, groups
        )
        if f"{name}.norm.running_mean" in self.w:
            n = {
                k: self.w[f"{name}.norm.{k}"][:, None, None]
                for k in ("weight", "bias", "running_mean", "running_var")
            }
            return (x - n["running_mean"]) / torch.sqrt(n["running_var"] + 1e-5) * n["weight"] + n[
                "bias"
            ]
        if f"{name}.norm.weight" in self.w:
            return F.group_norm(
                x, 32, self.w[f"{name}.norm.weight"], self.w[f"{name}.norm.bias"], 1e-5
            )
        return x

    # --- backbone ----------------------------------------------------------------------------

    def preprocess(self, rgb):
        """Take (3, H, W) uint8 red, green, blue; return what the network sees, padded."""
        image = rgb.float()
        if self.cfg["INPUT.FORMAT"] == "BGR":
            image = image[[2, 1, 0]]
        mean = torch.tensor(self.cfg["MODEL.PIXEL_MEAN"])[:, None, None]
        std = torch.tensor(self.cfg["MODEL.PIXEL_STD"])[:, None, None]
        image = (image - mean) / std
        h, w = image.shape[1:]
        return F.pad(image, (0, -w % 32, 0, -h % 32))[None]

    def block(self, x, name, stride):
        groups = self.cfg["MODEL.RESNETS.NUM_GROUPS"]
        shortcut = (
            self.conv(x, f"{name}.shortcut", stride) if f"{name}.shortcut.weight" in self.w else x
        )
        if self.cfg["MODEL.RESNETS.DEPTH"] in (18, 34):
            out = self.conv(x, f"{name}.conv1", stride, 1).relu()
            return (self.conv(out, f"{name}.conv2", 1, 1) + shortcut).relu()
        first, second = (stride, 1) if self.cfg["MODEL.RESNETS.STRIDE_IN_1X1"] else (1, stride)
        out = self.conv(x, f"{name}.conv1", first).relu()
        out = self.conv(out, f"{name}.conv2", second, 1, groups).relu()
        return (self.conv(out, f"{name}.conv3") + shortcut).relu()

    def resnet(self, image):
        x = self.conv(image, "backbone.bottom_up.stem.conv1", 2, 3).relu()
        x = F.max_pool2d(x, 3, 2, 1)
        maps = []
        for i, blocks in enumerate(BLOCKS[self.cfg["MODEL.RESNETS.DEPTH"]]):
            for j in range(blocks):
                x = self.block(x, f"backbone.bottom_up.res{i + 2}.{j}", 2 if i and j == 0 else 1)
            maps.append(x)
        return maps

    def pyramid(self, image):
        """Return p2 to p6."""
        maps = self.resnet(image)
        inner = self.conv(maps[3], "backbone.fpn_lateral5")
        out = [self.conv(inner, "backbone.fpn_output5", 1, 1)]
        for level in (4, 3, 2):
            above = F.interpolate(inner, scale_factor=2, mode="nearest")
            inner = self.conv(maps[level - 2], f"backbone.fpn_lateral{level}") + above
            if self.cfg["MODEL.FPN.FUSE_TYPE"] == "avg":
                inner = inner / 2
            out.insert(0, self.conv(inner, f"backbone.fpn_output{level}", 1, 1))
        return [*out, F.max_pool2d(out[-1], 1, 2, 0)]

    # --- proposals ---------------------------------------------------------------------------

    def rpn_hidden(self, x):
        dims = self.cfg["MODEL.RPN.CONV_DIMS"]
        for k in range(len(dims)):
            name = "proposal_generator.rpn_head.conv" + (f".conv{k}" if len(dims) > 1 else "")
            x = self.conv(x, name, 1, 1).relu()
        return x

    def anchors(self, level, height, width):
        """Return (height * width * A, 4), the anchors of a cell together."""
        stride, offset = STRIDES[level], self.cfg["MODEL.ANCHOR_GENERATOR.OFFSET"]
        cell = []
        for size in self.cfg["MODEL.ANCHOR_GENERATOR.SIZES"][level]:
            for ratio in self.cfg["MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS"][0]:
                w = math.sqrt(size**2.0 / ratio)
                h = ratio * w
                cell.append([-w / 2, -h / 2, w / 2, h / 2])
        x = torch.arange(width, dtype=torch.float32) * stride + offset * stride
        y = torch.arange(height, dtype=torch.float32) * stride + offset * stride
        y, x = (v.reshape(-1) for v in torch.meshgrid(y, x, indexing="ij"))
        return (torch.stack([x, y, x, y], 1)[:, None] + torch.tensor(cell)[None]).reshape(-1, 4)

    def proposals(self, maps, size):
        """Return the (n, 4) boxes that the heads look at."""
        cfg, found, scores, levels = self.cfg, [], [], []
        for level, x in enumerate(maps):
            t = self.rpn_hidden(x)
            logits = self.conv(t, "proposal_generator.rpn_head.objectness_logits")[0]
            deltas = self.conv(t, "proposal_generator.rpn_head.anchor_deltas")[0]
            logits = logits.permute(1, 2, 0).reshape(-1)
            deltas = deltas.reshape(-1, 4, *x.shape[2:]).permute(2, 3, 0, 1).reshape(-1, 4)
            boxes = apply_deltas(
                deltas, self.anchors(level, *x.shape[2:]), cfg["MODEL.RPN.BBOX_REG_WEIGHTS"]
            )
            best, index = logits.topk(min(len(logits), cfg["MODEL.RPN.PRE_NMS_TOPK_TEST"]))
            found.append(boxes[index])
            scores.append(best)
            levels.append(torch.full_like(index, level))
        boxes, scores, levels = torch.cat(found), torch.cat(scores), torch.cat(levels)
        fine = torch.isfinite(boxes).all(1) & torch.isfinite(scores)
        boxes, scores, levels = clip(boxes[fine], size), scores[fine], levels[fine]
        smallest = cfg["MODEL.PROPOSAL_GENERATOR.MIN_SIZE"]
        keep = ((boxes[:, 2:] - boxes[:, :2]) > smallest).all(1)
        boxes, scores, levels = boxes[keep], scores[keep], levels[keep]
        keep = nms_by_group(boxes, scores, levels, cfg["MODEL.RPN.NMS_THRESH"])
        return boxes[keep[: cfg["MODEL.RPN.POST_NMS_TOPK_TEST"]]]

    # --- heads -------------------------------------------------------------------------------

    def pool(self, maps, boxes, head):
        """Pool boxes from p2 to p5."""
        size = self.cfg[f"MODEL.{head}.POOLER_RESOLUTION"]
        ratio = self.cfg[f"MODEL.{head}.POOLER_SAMPLING_RATIO"]
        aligned = self.cfg[f"MODEL.{head}.POOLER_TYPE"] == "ROIAlignV2"
        area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
        level = torch.floor(4 + torch.log2(torch.sqrt(area) / 224 + 1e-8)).clamp(2, 5).long() - 2
        out = torch.zeros(len(boxes), maps[0].shape[1], size, size)
        for i, box in enumerate(boxes):
            out[i] = roi_align(maps[level[i]][0], box, size, 1 / STRIDES[level[i]], ratio, aligned)
        return out

    def box_features(self, pooled):
        x = pooled
        for k in range(self.cfg["MODEL.ROI_BOX_HEAD.NUM_CONV"]):
            x = self.conv(x, f"roi_heads.box_head.conv{k + 1}", 1, 1).relu()
        x = x.flatten(1)
        for k in range(self.cfg["MODEL.ROI_BOX_HEAD.NUM_FC"]):
            name = f"roi_heads.box_head.fc{k + 1}"
            x = F.linear(x, self.w[f"{name}.weight"], self.w[f"{name}.bias"]).relu()
        return x

    def predict(self, features):
        name = "roi_heads.box_predictor"
        return tuple(
            F.linear(features, self.w[f"{name}.{part}.weight"], self.w[f"{name}.{part}.bias"])
            for part in ("cls_score", "bbox_pred")
        )

    def boxes(self, maps, proposals, size):
        """Return boxes, scores and classes, the best first."""
        cfg = self.cfg
        logits, deltas = self.predict(self.box_features(self.pool(maps, proposals, "ROI_BOX_HEAD")))
        scores = F.softmax(logits, -1)
        boxes = apply_deltas(deltas, proposals, cfg["MODEL.ROI_BOX_HEAD.BBOX_REG_WEIGHTS"])
        fine = torch.isfinite(boxes).all(1) & torch.isfinite(scores).all(1)
        boxes, scores = boxes[fine], scores[fine][:, :-1]
        boxes = clip(boxes.reshape(-1, 4), size).reshape(len(boxes), -1, 4)
        rows, classes = (scores > cfg["MODEL.ROI_HEADS.SCORE_THRESH_TEST"]).nonzero(as_tuple=True)
        boxes = boxes[rows, 0] if boxes.shape[1] == 1 else boxes[rows, classes]
        scores = scores[rows, classes]
        keep = nms_by_group(boxes, scores, classes, cfg["MODEL.ROI_HEADS.NMS_THRESH_TEST"])
        if cfg["TEST.DETECTIONS_PER_IMAGE"] >= 0:
            keep = keep[: cfg["TEST.DETECTIONS_PER_IMAGE"]]
        return boxes[keep], scores[keep], classes[keep]

    def mask_logits(self, pooled):
        x = pooled
        for k in range(self.cfg["MODEL.ROI_MASK_HEAD.NUM_CONV"]):
            x = self.conv(x, f"roi_heads.mask_head.mask_fcn{k + 1}", 1, 1).relu()
        name = "roi_heads.mask_head.deconv"
        x = F.conv_transpose2d(x, self.w[f"{name}.weight"], self.w[f"{name}.bias"], 2).relu()
        return self.conv(x, "roi_heads.mask_head.predictor")

    def masks(self, maps, boxes, classes):
        logits = self.mask_logits(self.pool(maps, boxes, "ROI_MASK_HEAD"))
        if logits.shape[1] == 1:
            return logits[:, 0].sigmoid()
        return logits[torch.arange(len(classes)), classes].sigmoid()

    @torch.no_grad()
    def __call__(self, rgb):
        """Map (3, H, W) uint8 to boxes (n, 4), scores, classes and (n, 28, 28) masks or None."""
        size = tuple(rgb.shape[1:])
        maps = self.pyramid(self.preprocess(rgb))
        boxes, scores, classes = self.boxes(maps, self.proposals(maps, size), size)
        masks = self.masks(maps, boxes, classes) if self.cfg["MODEL.MASK_ON"] else None
        # what detector_postprocess does where the output has the size of the input
        there = ((boxes[:, 2:] - boxes[:, :2]) > 0).all(1)
        masks = None if masks is None else masks[there]
        return boxes[there], scores[there], classes[there], masks


def apply_deltas(deltas, boxes, weights):
    """Return (n, k * 4) boxes."""
    wx, wy, ww, wh = weights
    width, height = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    x, y = boxes[:, 0] + 0.5 * width, boxes[:, 1] + 0.5 * height
    dx, dy = deltas[:, 0::4] / wx, deltas[:, 1::4] / wy
    dw = torch.clamp(deltas[:, 2::4] / ww, max=SCALE_CLAMP)
    dh = torch.clamp(deltas[:, 3::4] / wh, max=SCALE_CLAMP)
    x, y = dx * width[:, None] + x[:, None], dy * height[:, None] + y[:, None]
    w, h = torch.exp(dw) * width[:, None], torch.exp(dh) * height[:, None]
    return torch.stack([x - 0.5 * w, y - 0.5 * h, x + 0.5 * w, y + 0.5 * h], -1).reshape(
        len(deltas), -1
    )


def clip(boxes, size):
    """Limit boxes to the image, not to its padding."""
    h, w = size
    return torch.stack([boxes[:, i].clamp(0, w if i % 2 == 0 else h) for i in range(4)], 1)


def nms_by_group(boxes, scores, groups, threshold):
    """Return kept rows, the best first; a box falls to a better one of its group with IoU above."""
    kept = []
    for group in groups.unique():
        rows = torch.nonzero(groups == group)[:, 0]
        rows = rows[scores[rows].argsort(descending=True, stable=True)]
        while len(rows):
            kept.append(rows[0])
            a, b = boxes[rows[0]], boxes[rows[1:]]
            side = (torch.minimum(a[2:], b[:, 2:]) - torch.maximum(a[:2], b[:, :2])).clamp(min=0)
            inner = side.prod(1)
            union = (a[2:] - a[:2]).prod() + (b[:, 2:] - b[:, :2]).prod(1) - inner
            rows = rows[1:][~(inner / union > threshold)]
    if not kept:
        return torch.zeros(0, dtype=torch.long)
    kept = torch.stack(kept)
    return kept[scores[kept].argsort(descending=True, stable=True)]


def axis_weights(start, length, cells, ratio, size):
    """Return (cells, size): how much of each feature goes into each cell, along one axis."""
    samples = ratio if ratio > 0 else math.ceil(length / cells)
    out = torch.zeros(cells, size)
    for cell in range(cells):
        for sample in range(samples):
            at = start + cell * (length / cells) + (sample + 0.5) * (length / cells) / samples
            if at < -1 or at > size:
                continue
            at = max(at, 0.0)
            low = int(at)
            if low >= size - 1:
                out[cell, size - 1] += 1 / samples
                continue
            out[cell, low] += (1 - (at - low)) / samples
            out[cell, low + 1] += (at - low) / samples
    return out


def roi_align(features, box, cells, scale, ratio, aligned):
    """Pool (C, H, W) in one box to (C, cells, cells)."""
    x0, y0, x1, y1 = (float(v) * scale - (0.5 if aligned else 0.0) for v in box)
    wide, tall = x1 - x0, y1 - y0
    if not aligned:
        wide, tall = max(wide, 1.0), max(tall, 1.0)
    rows = axis_weights(y0, tall, cells, ratio, features.shape[1])
    cols = axis_weights(x0, wide, cells, ratio, features.shape[2])
    return torch.einsum("ph,chw,qw->cpq", rows, features, cols)


# --- small checkpoints that find things -----------------------------------------------------------


def small_config(**changes):
    """Return all settings of a small Mask R-CNN; keyword ``a__b`` stands for key ``A.B``."""
    cfg = {
        "VERSION": 2,
        "MODEL.META_ARCHITECTURE": "GeneralizedRCNN",
        "MODEL.MASK_ON": True,
        "MODEL.PIXEL_MEAN": [103.530, 116.280, 123.675],
        "MODEL.PIXEL_STD": [1.0, 1.0, 1.0],
        "MODEL.BACKBONE.NAME": "build_resnet_fpn_backbone",
        "MODEL.RESNETS.DEPTH": 50,
        "MODEL.RESNETS.OUT_FEATURES": ["res2", "res3", "res4", "res5"],
        "MODEL.RESNETS.NUM_GROUPS": 1,
        "MODEL.RESNETS.WIDTH_PER_GROUP": 16,
        "MODEL.RESNETS.STRIDE_IN_1X1": True,
        "MODEL.RESNETS.RES2_OUT_CHANNELS": 64,
        "MODEL.RESNETS.STEM_OUT_CHANNELS": 16,
        "MODEL.RESNETS.NORM": "FrozenBN",
        "MODEL.FPN.IN_FEATURES": ["res2", "res3", "res4", "res5"],
        "MODEL.FPN.OUT_CHANNELS": 48,
        "MODEL.FPN.NORM": "",
        "MODEL.FPN.FUSE_TYPE": "sum",
        "MODEL.ANCHOR_GENERATOR.SIZES": [[16], [24], [48], [96], [160]],
        "MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS": [[0.5, 1.0, 2.0]],
        "MODEL.ANCHOR_GENERATOR.OFFSET": 0.0,
        "MODEL.PROPOSAL_GENERATOR.MIN_SIZE": 0,
        "MODEL.RPN.IN_FEATURES": ["p2", "p3", "p4", "p5", "p6"],
        "MODEL.RPN.BBOX_REG_WEIGHTS": [1.0, 1.0, 1.0, 1.0],
        "MODEL.RPN.PRE_NMS_TOPK_TEST": 300,
        "MODEL.RPN.POST_NMS_TOPK_TEST": 200,
        "MODEL.RPN.NMS_THRESH": 0.7,
        "MODEL.RPN.CONV_DIMS": [-1],
        "MODEL.ROI_HEADS.NAME": "StandardROIHeads",
        "MODEL.ROI_HEADS.NUM_CLASSES": 3,
        "MODEL.ROI_HEADS.IN_FEATURES": ["p2", "p3", "p4", "p5"],
        "MODEL.ROI_HEADS.SCORE_THRESH_TEST": 0.05,
        "MODEL.ROI_HEADS.NMS_THRESH_TEST": 0.5,
        "MODEL.ROI_BOX_HEAD.NAME": "FastRCNNConvFCHead",
        "MODEL.ROI_BOX_HEAD.BBOX_REG_WEIGHTS": [10.0, 10.0, 5.0, 5.0],
        "MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION": 7,
        "MODEL.ROI_BOX_HEAD.POOLER_SAMPLING_RATIO": 0,
        "MODEL.ROI_BOX_HEAD.POOLER_TYPE": "ROIAlignV2",
        "MODEL.ROI_BOX_HEAD.NUM_FC": 2,
        "MODEL.ROI_BOX_HEAD.FC_DIM": 96,
        "MODEL.ROI_BOX_HEAD.NUM_CONV": 0,
        "MODEL.ROI_BOX_HEAD.CONV_DIM": 40,
        "MODEL.ROI_BOX_HEAD.NORM": "",
        "MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG": False,
        "MODEL.ROI_MASK_HEAD.NAME": "MaskRCNNConvUpsampleHead",
        "MODEL.ROI_MASK_HEAD.POOLER_RESOLUTION": 14,
        "MODEL.ROI_MASK_HEAD.POOLER_SAMPLING_RATIO": 0,
        "MODEL.ROI_MASK_HEAD.POOLER_TYPE": "ROIAlignV2",
        "MODEL.ROI_MASK_HEAD.NUM_CONV": 2,
        "MODEL.ROI_MASK_HEAD.CONV_DIM": 40,
        "MODEL.ROI_MASK_HEAD.NORM": "",
        "MODEL.ROI_MASK_HEAD.CLS_AGNOSTIC_MASK": False,
        "INPUT.FORMAT": "BGR",
        "TEST.DETECTIONS_PER_IMAGE": 100,
    }
    for name, value in changes.items():
        section, _, key = name.upper().rpartition("__")
        full = ".".join(part for part in (*section.split("__"), key) if part)
        matches = [k for k in cfg if k == full or k.endswith("." + full)]
        assert len(matches) == 1, (full, matches)
        cfg[matches[0]] = value
    return cfg


def nested(cfg):
    """Return dotted keys as the tables of a YAML file."""
    tree = {}
    for key, value in cfg.items():
        *sections, last = key.split(".")
        node = tree
        for section in sections:
            node = node.setdefault(section, {})
        node[last] = value
    return tree


class _Random:
    """Draws weights by name and shape."""

    def __init__(self, seed):
        self.generator = torch.Generator().manual_seed(seed)
        self.weights = {}

    def draw(self, *shape, low=None, high=None):
        if low is not None:
            return torch.rand(*shape, generator=self.generator) * (high - low) + low
        return torch.randn(*shape, generator=self.generator)

    def conv(self, name, n_in, n_out, kernel, norm="", *, bias=None, groups=1, gain=(0.8, 1.2)):
        fan = n_in // groups * kernel**2
        self.weights[f"{name}.weight"] = self.draw(
            n_out, n_in // groups, kernel, kernel
        ) * math.sqrt(2 / fan)
        if (not norm) if bias is None else bias:
            self.weights[f"{name}.bias"] = self.draw(n_out) * 0.1
        if norm:
            self.weights[f"{name}.norm.weight"] = self.draw(n_out, low=gain[0], high=gain[1])
            self.weights[f"{name}.norm.bias"] = self.draw(n_out) * 0.1
        if norm in ("FrozenBN", "BN", "SyncBN"):
            self.weights[f"{name}.norm.running_mean"] = self.draw(n_out) * 0.1
            self.weights[f"{name}.norm.running_var"] = self.draw(n_out, low=0.5, high=1.5)

    def linear(self, name, n_in, n_out):
        self.weights[f"{name}.weight"] = self.draw(n_out, n_in) * math.sqrt(2 / n_in)
        self.weights[f"{name}.bias"] = self.draw(n_out) * 0.1


def random_checkpoint(cfg, image, seed=0):
    """Return weights by Detectron2's names, scaled so that `image` gives many sure detections."""
    r = _Random(seed)
    _draw_backbone(r, cfg)
    fpn, classes = cfg["MODEL.FPN.OUT_CHANNELS"], cfg["MODEL.ROI_HEADS.NUM_CLASSES"]
    dims = cfg["MODEL.RPN.CONV_DIMS"]
    hidden = fpn
    for k, dim in enumerate(dims):
        name = "proposal_generator.rpn_head.conv" + (f".conv{k}" if len(dims) > 1 else "")
        out = hidden if dim == -1 else dim
        r.conv(name, hidden, out, 3)
        hidden = out
    anchors = len(cfg["MODEL.ANCHOR_GENERATOR.SIZES"][0]) * len(
        cfg["MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS"][0]
    )
    r.conv("proposal_generator.rpn_head.objectness_logits", hidden, anchors, 1)
    r.conv("proposal_generator.rpn_head.anchor_deltas", hidden, 4 * anchors, 1)
    width = fpn
    for k in range(cfg["MODEL.ROI_BOX_HEAD.NUM_CONV"]):
        dim = cfg["MODEL.ROI_BOX_HEAD.CONV_DIM"]
        r.conv(f"roi_heads.box_head.conv{k + 1}", width, dim, 3, cfg["MODEL.ROI_BOX_HEAD.NORM"])
        width = dim
    width *= cfg["MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION"] ** 2
    for k in range(cfg["MODEL.ROI_BOX_HEAD.NUM_FC"]):
        r.linear(f"roi_heads.box_head.fc{k + 1}", width, cfg["MODEL.ROI_BOX_HEAD.FC_DIM"])
        width = cfg["MODEL.ROI_BOX_HEAD.FC_DIM"]
    r.linear("roi_heads.box_predictor.cls_score", width, classes + 1)
    agnostic = cfg["MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG"]
    r.linear("roi_heads.box_predictor.bbox_pred", width, 4 if agnostic else 4 * classes)
    if cfg["MODEL.MASK_ON"]:
        _draw_mask_head(r, cfg)
    _calibrate(r.weights, cfg, image)
    return r.weights


def _draw_backbone(r, cfg):
    depth, norm = cfg["MODEL.RESNETS.DEPTH"], cfg["MODEL.RESNETS.NORM"]
    n_in, out = cfg["MODEL.RESNETS.STEM_OUT_CHANNELS"], cfg["MODEL.RESNETS.RES2_OUT_CHANNELS"]
    groups = cfg["MODEL.RESNETS.NUM_GROUPS"]
    middle = groups * cfg["MODEL.RESNETS.WIDTH_PER_GROUP"]
    r.conv("backbone.bottom_up.stem.conv1", 3, n_in, 7, norm)
    # pixels minus their mean have a spread of some 70
    r.weights["backbone.bottom_up.stem.conv1.weight"] /= 70 / max(cfg["MODEL.PIXEL_STD"])
    fpn, fpn_norm = cfg["MODEL.FPN.OUT_CHANNELS"], cfg["MODEL.FPN.NORM"]
    for i, blocks in enumerate(BLOCKS[depth]):
        for j in range(blocks):
            name = f"backbone.bottom_up.res{i + 2}.{j}"
            if n_in != out:
                r.conv(f"{name}.shortcut", n_in, out, 1, norm)
            if depth in (18, 34):
                r.conv(f"{name}.conv1", n_in, out, 3, norm)
                r.conv(f"{name}.conv2", out, out, 3, norm, gain=(0.2, 0.4))
            else:
                r.conv(f"{name}.conv1", n_in, middle, 1, norm)
                r.conv(f"{name}.conv2", middle, middle, 3, norm, groups=groups)
                r.conv(f"{name}.conv3", middle, out, 1, norm, gain=(0.2, 0.4))
            n_in = out
        r.conv(f"backbone.fpn_lateral{i + 2}", out, fpn, 1, fpn_norm)
        r.conv(f"backbone.fpn_output{i + 2}", fpn, fpn, 3, fpn_norm)
        out, middle = 2 * out, 2 * middle


def _draw_mask_head(r, cfg):
    width, dim = cfg["MODEL.FPN.OUT_CHANNELS"], cfg["MODEL.ROI_MASK_HEAD.CONV_DIM"]
    for k in range(cfg["MODEL.ROI_MASK_HEAD.NUM_CONV"]):
        r.conv(
            f"roi_heads.mask_head.mask_fcn{k + 1}", width, dim, 3, cfg["MODEL.ROI_MASK_HEAD.NORM"]
        )
        width = dim
    r.weights["roi_heads.mask_head.deconv.weight"] = r.draw(width, dim, 2, 2) * math.sqrt(2 / width)
    r.weights["roi_heads.mask_head.deconv.bias"] = r.draw(dim) * 0.1
    agnostic = cfg["MODEL.ROI_MASK_HEAD.CLS_AGNOSTIC_MASK"]
    r.conv(
        "roi_heads.mask_head.predictor",
        dim,
        1 if agnostic else cfg["MODEL.ROI_HEADS.NUM_CLASSES"],
        1,
    )


@torch.no_grad()
def _calibrate(w, cfg, image):
    """Scale the outputs layer by layer, as a training would have done."""
    model, size = Forward(w, cfg), tuple(image.shape[1:])
    pixels = model.preprocess(image)
    for level, x in enumerate(model.resnet(pixels)):
        w[f"backbone.fpn_lateral{level + 2}.weight"] /= x.std()
    for level, x in enumerate(model.pyramid(pixels)[:4]):
        w[f"backbone.fpn_output{level + 2}.weight"] /= x.std()
    maps = model.pyramid(pixels)
    head = "proposal_generator.rpn_head"
    hidden = [model.rpn_hidden(x) for x in maps]
    for part, spread in (("objectness_logits", 3.0), ("anchor_deltas", 0.3)):
        out = torch.cat([model.conv(t, f"{head}.{part}")[0].flatten(1) for t in hidden], 1)
        _scale(w, f"{head}.{part}", out.mean(1), out.std(1), spread)
    features = model.box_features(model.pool(maps, model.proposals(maps, size), "ROI_BOX_HEAD"))
    logits, deltas = model.predict(features)
    _scale(w, "roi_heads.box_predictor.cls_score", logits.mean(0), logits.std(0), 4.0)
    _scale(w, "roi_heads.box_predictor.bbox_pred", deltas.mean(0), deltas.std(0), 1.0)
    if cfg["MODEL.MASK_ON"]:
        boxes, _, _ = model.boxes(maps, model.proposals(maps, size), size)
        out = model.mask_logits(model.pool(maps, boxes, "ROI_MASK_HEAD"))
        _scale(w, "roi_heads.mask_head.predictor", out.mean((0, 2, 3)), out.std((0, 2, 3)), 3.0)


def _scale(w, name, mean, std, spread):
    gain = spread / std
    w[f"{name}.weight"] *= gain.view(-1, *[1] * (w[f"{name}.weight"].ndim - 1))
    w[f"{name}.bias"] = (w[f"{name}.bias"] - mean) * gain
