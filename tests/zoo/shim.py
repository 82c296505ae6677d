"""torchvision beside any build of torch: its compiled part fits only the build it was made with, and the architectures need
just two of its operators, which are written out here."""

from __future__ import annotations

import sys
from types import ModuleType

import torch
from torch import Tensor
from torch.nn import functional as F

_BOXES = "Tensor input, Tensor rois, float spatial_scale, SymInt pooled_height, SymInt pooled_width"
_BACK = "SymInt batch_size, SymInt channels, SymInt height, SymInt width"
_DEFORMED = (
    "Tensor input, Tensor weight, Tensor offset, Tensor mask, Tensor bias, SymInt stride_h, SymInt stride_w, SymInt pad_h, "
    "SymInt pad_w, SymInt dilation_h, SymInt dilation_w, SymInt groups, SymInt offset_groups, bool use_mask"
)
SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    f"roi_align({_BOXES}, int sampling_ratio, bool aligned) -> Tensor",
    f"roi_pool({_BOXES}) -> (Tensor, Tensor)",
    f"ps_roi_align({_BOXES}, int sampling_ratio) -> (Tensor, Tensor)",
    f"ps_roi_pool({_BOXES}) -> (Tensor, Tensor)",
    f"deform_conv2d({_DEFORMED}) -> Tensor",
    f"_roi_align_backward({_BOXES}, {_BACK}, int sampling_ratio, bool aligned) -> Tensor",
    f"_roi_pool_backward(Tensor grad, Tensor argmax, {_BOXES}, {_BACK}) -> Tensor",
    f"_ps_roi_align_backward(Tensor grad, Tensor mapping, {_BOXES}, int sampling_ratio, {_BACK}) -> Tensor",
    f"_ps_roi_pool_backward(Tensor grad, Tensor mapping, {_BOXES}, {_BACK}) -> Tensor",
    f"_deform_conv2d_backward(Tensor grad, {_DEFORMED}) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
)
_DECLARED: list[torch.library.Library] = []  # what is declared lasts as long as its library


def import_torchvision() -> ModuleType:
    """torchvision, with its own operators where they load and the two below where they do not; ImportError without it."""
    try:
        import torchvision
    except RuntimeError:  # "operator torchvision::nms does not exist"
        for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
            del sys.modules[name]
        _declare()
        import torchvision

        for name in ("torchvision.extension", "torchvision.ops.roi_align"):
            vars(sys.modules[name])["_has_ops"] = lambda: True
    return torchvision


def _declare() -> None:
    if _DECLARED:
        return
    library = torch.library.Library("torchvision", "DEF")
    for schema in SCHEMAS:
        library.define(schema)
    library.impl("nms", nms, "CPU")
    library.impl("roi_align", roi_align, "AutogradCPU")  # made of operations that torch differentiates
    _DECLARED.append(library)


def nms(boxes: Tensor, scores: Tensor, iou_threshold: float) -> Tensor:
    """Numbers of the boxes (n, 4) that overlap none of a higher score by more than the threshold, best first."""
    order = scores.argsort(descending=True)
    found = boxes[order]
    low = torch.maximum(found[:, None, :2], found[None, :, :2])
    high = torch.minimum(found[:, None, 2:], found[None, :, 2:])
    shared = (high - low).clamp(min=0).prod(2)
    areas = (found[:, 2:] - found[:, :2]).prod(1)
    overlapping = shared > iou_threshold * (areas[:, None] + areas[None] - shared)
    kept = torch.ones(len(boxes), dtype=torch.bool)
    for i in range(len(boxes)):
        if kept[i]:
            kept[i + 1 :] &= ~overlapping[i, i + 1 :]
    return order[kept]


def roi_align(
    x: Tensor, rois: Tensor, scale: float, height: int, width: int, sampling_ratio: int, aligned: bool
) -> Tensor:
    """Means of points on a grid in each box (k, 5: image, x1, y1, x2, y2), shape (k, channels, height, width)."""
    points, shift = max(sampling_ratio, 2), 0.5 * aligned
    found = x.new_zeros(len(rois), x.shape[1], height, width)
    for image in range(len(x)):
        mine = rois[:, 0] == image
        boxes = rois[mine, 1:] * scale - shift
        grid = _grid(boxes, height * points, width * points, x.shape[3], x.shape[2]).to(x.dtype)
        taken = F.grid_sample(x[image : image + 1], grid.flatten(0, 1)[None], "bilinear", "border", False)
        parts = taken[0].unflatten(1, (len(boxes), height, points)).unflatten(4, (width, points)).mean((3, 5))
        found[mine] = parts.transpose(0, 1)
    return found


def _grid(boxes: Tensor, rows: int, columns: int, width: int, height: int) -> Tensor:
    """Points spread evenly over each box, (k, rows, columns, 2), as grid_sample counts them: -1 and 1 are the edges."""
    sides = []
    for axis, count, size in ((0, columns, width), (1, rows, height)):
        places = (torch.arange(count, device=boxes.device) + 0.5) / count
        low, high = boxes[:, axis, None], boxes[:, axis + 2, None]
        sides.append(2 * (low + (high - low) * places + 0.5) / size - 1)
    return torch.stack(
        [
            sides[0][:, None, :].expand(-1, rows, -1),
            sides[1][:, :, None].expand(-1, -1, columns),
        ],
        -1,
    )
