"""Networks of timm by name, with random weights.

timm builds vision transformers for images of one size. Those that can are told to take any: positions are interpolated,
images padded to whole patches, and at the size of the name nothing changes.
"""

from typing import Any

from torch import nn

from samix.errors import ConfigError

_ANY_SIZE: dict[str, dict[str, Any]] = {
    "deit": {"dynamic_img_size": True},
    "eva": {"dynamic_img_size": True},
    "vision_transformer": {"dynamic_img_size": True},
    "swin_transformer": {"strict_img_size": False},
    "swin_transformer_v2": {"strict_img_size": False},
}
"""By module of timm, what makes its networks take images of any size."""


def build_timm(
    name: str, num_classes: int, *, layers: tuple[int, ...], channels: tuple[int, ...], drop_path: float = 0.0
) -> nn.Module:
    """Build a network; the last batch norm of each residual block starts at zero, as timm has it.

    Args:
        name: timm's.
        num_classes: size of the classifier; 0 leaves pooled features.
        layers: blocks of each stage; empty keeps the published ones.
        channels: width of each stage; empty keeps the published ones.
        drop_path: share of images whose deepest residual block is skipped in training; less at shallower ones.

    Raises:
        ConfigError: if timm does not know the name, or its network cannot be set so.
    """
    import timm  # three seconds to import, and the client never needs it

    # is_model also knows names of published weights, which are never loaded here, and old names with such weights.
    if name not in timm.list_models():
        near = ", ".join(timm.list_models(f"{name[:6]}*")[:5]) or "see timm.list_models()"
        raise ConfigError(f"timm knows no backbone {name[:60]!r}; near it: {near}")
    shape: dict[str, Any] = {key: value for key, value in (("layers", layers), ("channels", channels)) if value}
    if drop_path:
        shape["drop_path_rate"] = drop_path
    flexible = [options for module, options in _ANY_SIZE.items() if timm.models.is_model_in_modules(name, [module])]
    try:
        network: Any = timm.create_model(name, num_classes=num_classes, **shape, **(flexible[0] if flexible else {}))
    except TypeError as error:
        settings = " and ".join(shape)
        raise ConfigError(f"backbone {name!r} takes no {settings} ({error}); leave them as they are") from error
    if flexible:
        network.patch_embed.dynamic_img_pad = True
    return network


def fixed_size(network: nn.Module) -> tuple[int, int] | None:
    """Return height and width of the only images a network takes, or None where it takes others too."""
    published = getattr(network, "pretrained_cfg", {})
    if not published.get("fixed_input_size") or getattr(network, "dynamic_img_size", False):
        return None
    height, width = published["input_size"][1:]
    return height, width
