"""The arithmetic of forward and backward passes."""

from contextlib import AbstractContextManager

import torch

from wardround_common.shared_model import SharedModel


def autocast(shared: SharedModel, device: torch.device) -> AbstractContextManager[object]:
    """The file's precision: parameters, optimizer and what is exchanged are float32 either way."""
    wanted = shared.federation.training.precision == "bfloat16"
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=wanted)
