"""Image classifiers of timm and torchvision by their names there."""

import difflib
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from tgeokd.data.base import InputSpec
from tgeokd.models.cifar.layers import check_images
from tgeokd.utils.errors import InputError, first_line, optional_import, unknown_name

WITH_EXTRA_HEADS = ("googlenet", "inception_v3")
UNPICKLING = (
    "checkpoint_path",
    "pretrained_cfg",
    "pretrained_cfg_overlay",
)  # options of timm that can run code of a file


def hub_model(name: str, *, inputs: InputSpec, num_classes: int, pretrained: bool = False, **options: Any) -> nn.Module:
    """A model of timm or torchvision.

    Args:
        name: ``timm:NAME`` or ``torchvision:NAME``.
        inputs: images of shape (3, H, W).
        num_classes: C. A pretrained head of C classes is kept; of another number it is replaced by a newly initialized one.
        pretrained: start from the library's default weights, downloaded on first use.
        **options: of the library's function, e.g. ``drop_rate`` or ``img_size``.

    Raises:
        InputError: also for a library that is not installed, or weights that cannot be downloaded.
    """
    library, _, model_name = name.partition(":")
    if library not in BUILDERS:
        raise unknown_name(f"library of model {name!r}:", library, BUILDERS)
    if not isinstance(pretrained, bool):
        raise InputError(f"pretrained of model {name!r} must be true or false, not {pretrained!r}")
    check_images(name, inputs)
    for option in UNPICKLING:
        if option in options:
            raise InputError(f"model {name!r} takes no option {option!r}; `weights` names a local file")
    package = optional_import(library, f"model {name!r}")
    try:
        model = BUILDERS[library](package, model_name, num_classes, pretrained, options)
    except OSError as error:
        raise InputError(
            f"the pretrained weights of {name!r} cannot be downloaded ({first_line(error)}); `weights` may name a local file"
        ) from error
    except InputError:
        raise
    except (TypeError, ValueError, RuntimeError, AssertionError) as error:
        raise InputError(f"{library} cannot build {model_name!r}: {first_line(error)}") from error
    _check_logits(name, model, inputs, num_classes)
    return model


def _timm(timm: Any, name: str, num_classes: int, pretrained: bool, options: dict[str, Any]) -> nn.Module:
    if not timm.is_model(name):
        raise _unknown("timm", name, timm.list_models())
    model: nn.Module = timm.create_model(name, pretrained=pretrained, num_classes=num_classes, **options)
    return model


def _torchvision(torchvision: Any, name: str, num_classes: int, pretrained: bool, options: dict[str, Any]) -> nn.Module:
    models = torchvision.models
    known = models.list_models(module=models)  # classifiers only
    if name not in known:
        raise _unknown("torchvision", name, known)
    if not pretrained:
        if name in WITH_EXTRA_HEADS:
            options = {"aux_logits": False, "init_weights": True} | options
        model: nn.Module = models.get_model(name, weights=None, num_classes=num_classes, **options)
        return model
    weights = models.get_model_weights(name).DEFAULT
    model = models.get_model(name, weights=weights, **options)
    if name == "inception_v3":  # its weights include the extra head, which googlenet removes by itself
        model.aux_logits = False  # type: ignore[assignment]
        model.register_module("AuxLogits", None)
    classes = len(weights.meta["categories"])
    if classes != num_classes:
        _replace_head(model, name, classes, num_classes)
    return model


def _replace_head(model: nn.Module, name: str, classes: int, num_classes: int) -> None:
    """Replace the last layer with as many outputs as the weights have classes."""
    layers = [
        (path, layer)
        for path, layer in model.named_modules()
        if (isinstance(layer, nn.Linear) and layer.out_features == classes)
        or (isinstance(layer, nn.Conv2d) and layer.out_channels == classes and layer.kernel_size == (1, 1))
    ]
    if not layers:
        raise InputError(
            f"'torchvision:{name}' has no layer of {classes} outputs to replace: use pretrained=false, or another model"
        )
    path, layer = layers[-1]
    bias = layer.bias is not None
    if isinstance(layer, nn.Linear):
        model.set_submodule(path, nn.Linear(layer.in_features, num_classes, bias))
    else:
        model.set_submodule(path, nn.Conv2d(layer.in_channels, num_classes, 1, bias=bias))


BUILDERS = {"timm": _timm, "torchvision": _torchvision}


def _check_logits(name: str, model: nn.Module, inputs: InputSpec, num_classes: int) -> None:
    """Run the model once: some take images of one size only, some return more than logits."""
    shape = (1, *inputs.shape)
    model.eval()
    try:
        with torch.no_grad():
            logits = model(torch.zeros(shape))
    except (RuntimeError, AssertionError, ValueError, IndexError) as error:
        raise InputError(f"model {name!r} does not take images of shape {inputs.shape}: {first_line(error)}") from error
    finally:
        model.train()
    if not isinstance(logits, Tensor) or logits.shape != (1, num_classes):
        found = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise InputError(f"model {name!r} returns {found} for images {shape}, not logits of shape {(1, num_classes)}")


def _unknown(library: str, name: str, known: Iterable[str]) -> InputError:
    """As :func:`unknown_name`, without the list of all names, which has hundreds."""
    near = difflib.get_close_matches(name, list(known), n=3, cutoff=0.5)
    hint = f"; did you mean {', '.join(map(repr, near))}?" if near else ""
    return InputError(f"unknown {library} model {name!r}{hint}")
