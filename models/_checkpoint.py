"""Reading checkpoints: tensors only, under other names too, with errors that say what is wrong."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor


def load_checkpoint(
    path: str | Path, model: str, wanted: Mapping[str, Tensor], names: Mapping[str, str]
) -> dict[str, Tensor]:
    """A state dict with exactly the names and shapes of ``wanted``.

    Args:
        path: a file by ``torch.save``: a state dict, alone or under "params_ema", "params" or "state_dict".
        model: what to call the model in errors.
        names: other names of the tensors, by prefix: what starts with a key goes by its value instead.

    Raises:
        OSError: there is no such file. ValueError: it is not a checkpoint of this model.
    """
    with open(path, "rb") as file:
        try:
            content = torch.load(file, map_location="cpu", weights_only=True)
        except (pickle.UnpicklingError, RuntimeError, EOFError, KeyError, ValueError, OSError) as error:
            raise ValueError(f"{path} is no PyTorch checkpoint of tensors alone: {error}") from error
    for key in ("params_ema", "params", "state_dict"):
        content = content.get(key, content) if isinstance(content, dict) else content
    if not isinstance(content, dict) or not all(
        isinstance(name, str) and isinstance(value, Tensor) for name, value in content.items()
    ):
        raise ValueError(f"{path} holds no state dict")
    found = {_translated(name.removeprefix("module."), names): value for name, value in content.items()}
    missing, unknown = sorted(wanted.keys() - found.keys()), sorted(found.keys() - wanted.keys())
    if missing or unknown:
        raise ValueError(
            f"{path} is no checkpoint of {model}: {len(missing)} tensors are missing {missing[:3]}, "
            f"{len(unknown)} are unknown {unknown[:3]}"
        )
    return {name: _reshaped(found[name], value, name, model, path) for name, value in wanted.items()}


def _translated(name: Any, names: Mapping[str, str]) -> str:
    prefix = next((p for p in names if name.startswith(p)), "")
    return names.get(prefix, "") + name[len(prefix) :]


def _reshaped(value: Tensor, wanted: Tensor, name: str, model: str, path: str | Path) -> Tensor:
    if value.shape == wanted.shape:
        return value
    # Basis tables may come as the weight of a linear layer, a column each.
    if value.dim() == 2 and value.T.shape == wanted.flatten(1).shape:
        return value.T.reshape(wanted.shape)
    raise ValueError(
        f"{path} is a {model} of other sizes: {name} is {list(value.shape)}, expected {list(wanted.shape)}"
    )
