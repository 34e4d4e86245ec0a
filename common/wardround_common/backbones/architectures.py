"""Image architectures of timm and torchvision, built without their classifier and without weights.

Only names that the installed library itself lists are accepted; nothing is ever downloaded.
"""

import difflib
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from wardround_common.backbones.refs import Library, Ref
from wardround_common.errors import BackboneError, ConfigError
from wardround_common.modalities.image import PixelScale

_IMAGENET_MEAN = (0.485, 0.456, 0.406)
_IMAGENET_DEVIATION = (0.229, 0.224, 0.225)


@dataclass(frozen=True, slots=True)
class BareNet:
    """A network whose output is its pooled features, with random weights.

    Attributes:
        net: pixels (scaled) in, float32 [B, d] out.
        classifiers: prefixes of the names that a checkpoint may have beyond the network's own.
        scale: how the library's own weights expect their pixels.
        size: the library's own image size in pixels.
    """

    net: nn.Module
    classifiers: tuple[str, ...]
    scale: PixelScale
    size: int


def build_bare(library: Library, name: str) -> BareNet:
    """Build an architecture; the global random state is left as it was.

    Raises:
        BackboneError: the library has no such architecture; close names are listed.
    """
    names = _names(library)
    if name not in names:
        close = ", ".join(difflib.get_close_matches(name, names, n=4)) or "none is close"
        raise BackboneError(
            f"backbone.ref: {library} has no architecture {name!r} (similar: {close})",
            code="backbone_unknown",
        )
    with torch.random.fork_rng(devices=[]):
        return _timm(name) if library == "timm" else _torchvision(name)


def library_of(ref: Ref) -> Library:
    """The library of a ``file:`` reference's architecture.

    Raises:
        ConfigError: both libraries have one of that name.
        BackboneError: neither has.
    """
    if ref.library is not None:
        return ref.library
    name = ref.architecture or ""
    having: list[Library] = [x for x in _LIBRARIES if name in _names(x)]
    if len(having) > 1:
        raise ConfigError(
            f"backbone.ref = {ref.text!r}: timm and torchvision both have {name}; write "
            f"#timm:{name} or #torchvision:{name}",
            code="backbone_ref",
        )
    if not having:
        raise BackboneError(
            f"backbone.ref = {ref.text!r}: neither timm nor torchvision has {name!r}",
            code="backbone_unknown",
        )
    return having[0]


_LIBRARIES: tuple[Library, ...] = ("timm", "torchvision")


def _names(library: Library) -> list[str]:
    if library == "timm":
        import timm

        return list(timm.list_models())
    import torchvision

    return list(torchvision.models.list_models(module=torchvision.models))


def _timm(name: str) -> BareNet:
    import timm

    net: Any = timm.create_model(name, pretrained=False, num_classes=0)
    config = net.pretrained_cfg
    classifier = config.get("classifier") or ()
    classifiers = (classifier,) if isinstance(classifier, str) else tuple(classifier)
    return BareNet(
        net, classifiers, _pixels(config["mean"], config["std"]), int(config["input_size"][-1])
    )


def _torchvision(name: str) -> BareNet:
    import torchvision

    net = torchvision.models.get_model(name, weights=None)
    linear = [path for path, child in net.named_modules() if isinstance(child, nn.Linear)]
    if not linear or linear[-1].split(".")[0] not in {"fc", "classifier", "head", "heads"}:
        raise BackboneError(
            f"backbone.ref: torchvision's {name} ends in no linear classifier to replace; "
            "choose another architecture",
            code="backbone_unsupported",
        )
    net.set_submodule(linear[-1], nn.Identity())
    return BareNet(net, (linear[-1],), _pixels(_IMAGENET_MEAN, _IMAGENET_DEVIATION), 224)


def _pixels(mean: tuple[float, ...], deviation: tuple[float, ...]) -> PixelScale:
    """A library's scale for values in [0, 1], in pixel units."""
    red, green, blue = (255.0 * value for value in mean)
    first, second, third = (255.0 * value for value in deviation)
    return PixelScale((red, green, blue), (first, second, third))
