"""torchvision's whole list of models, each with the smallest input that it accepts."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.zoo.entries import Entry, images
from tests.zoo.shim import import_torchvision

CLASSES = 10
SIZES = (32, 48, 64, 96, 128, 160, 224)  # of images, tried in this order
DETECTORS = ("rcnn", "fcos", "retinanet", "ssd")
VIDEO = ("mc3", "r2plus1d", "r3d", "s3d", "swin3d", "mvit")
SAMPLE = (  # of the ordinary tests: one of each kind, the quickest
    "resnet18", "mobilenet_v3_small", "vit_b_32", "swin_t", "densenet121", "shufflenet_v2_x0_5", "googlenet",
    "lraspp_mobilenet_v3_large", "ssdlite320_mobilenet_v3_large", "raft_small",
)  # fmt: skip

Batches = Callable[[], Iterable[tuple[Any, Any]]]


def entries() -> list[Entry]:
    """One entry for each name of torchvision.models.list_models()."""
    return [entry(name) for name in import_torchvision().models.list_models()]


def entry(name: str) -> Entry:
    """The entry of a model of torchvision."""
    if "raft" in name:
        return Entry(name, _builder(name), _two_frames, _flow)
    if any(part in name for part in DETECTORS):
        return _detector(name)
    if name.startswith(VIDEO):
        return Entry(name, _builder(name, num_classes=CLASSES), _films(name), _classes)
    if any(part in name for part in ("fcn", "deeplab", "lraspp")):
        return Entry(name, _builder(name, weights_backbone=None, num_classes=CLASSES), _masked, _pixels)
    size = {"vit_h_14": 28, "vit_b_16": 32, "vit_l_16": 32, "vit_b_32": 64, "vit_l_32": 64}.get(name)
    settings = {} if size is None else {"image_size": size}
    if "googlenet" in name or "inception" in name:
        settings["init_weights"] = False  # drawing truncated normal numbers takes longer than the check
    sizes = (*SIZES, 299) if size is None else (size,)
    return Entry(name, _builder(name, num_classes=CLASSES, **settings), _pictures(sizes), _classes)


def _builder(name: str, **settings: Any) -> Callable[[], nn.Module]:
    return lambda: import_torchvision().models.get_model(name, weights=None, **settings).train()


def _pictures(sizes: Iterable[int]) -> Batches:
    return lambda: ((images(2, 3, size, size), torch.tensor([0, 1])) for size in sizes)


def _films(name: str) -> Batches:
    frames = {"mvit": (16,), "s3d": (16, 32)}.get(name.partition("_")[0], (8, 16))
    sizes = (224,) if "mvit" in name else SIZES
    return lambda: ((images(2, 3, n, size, size), torch.tensor([0, 1])) for n in frames for size in sizes)


def _masked() -> Iterable[tuple[Tensor, Tensor]]:
    return ((images(2, 3, s, s), torch.arange(2 * s * s).reshape(2, s, s) % CLASSES) for s in SIZES)


def _two_frames() -> Iterable[tuple[Any, Tensor]]:
    return (((images(2, 3, s, s), images(2, 3, s, s).flip(0)), images(2, 2, s, s)) for s in (64, 96, 128))


def _detector(name: str) -> Entry:
    settings: dict[str, Any] = {"weights_backbone": None, "num_classes": CLASSES}
    if not name.startswith("ssd"):  # these two have a size of their own
        settings |= {"min_size": 64, "max_size": 96}
    if name.startswith("keypoint"):
        settings |= {"num_classes": 2, "num_keypoints": 5}
    return Entry(name, _builder(name, **settings), _scenes, _sum_of_losses)


def _scenes() -> Iterable[tuple[Any, Tensor]]:
    """Two images of different sizes, with two boxes each."""
    pictures = [images(3, 64, 80).sigmoid(), images(3, 72, 64).sigmoid()]
    boxes = torch.tensor([[5.0, 5.0, 40.0, 40.0], [20.0, 10.0, 60.0, 60.0]])
    targets = []
    for picture in pictures:
        masks = torch.zeros(2, *picture.shape[1:], dtype=torch.uint8)
        masks[:, 10:30, 25:35] = 1
        points = torch.cat([boxes[:, None, :2] + 5.0 * torch.arange(1, 6)[:, None], torch.ones(2, 5, 1)], 2)
        targets.append({"boxes": boxes, "labels": torch.tensor([1, 1]), "masks": masks, "keypoints": points})
    return [((pictures, targets), torch.zeros(2))]


# ---------------------------------------------------------------- losses
def _classes(output: Any, y: Tensor) -> Tensor:
    """Cross-entropy, also of the auxiliary outputs that some networks have."""
    outputs = output if isinstance(output, tuple) else (output,)
    return torch.stack([F.cross_entropy(each, y) for each in outputs]).sum()


def _pixels(output: Mapping[str, Tensor], y: Tensor) -> Tensor:
    return torch.stack([F.cross_entropy(each, y) for each in output.values()]).sum()


def _flow(output: list[Tensor], y: Tensor) -> Tensor:
    return torch.stack([(each - y).abs().mean() for each in output]).sum()


def _sum_of_losses(output: Mapping[str, Tensor], _y: Tensor) -> Tensor:
    return torch.stack(list(output.values())).sum()
