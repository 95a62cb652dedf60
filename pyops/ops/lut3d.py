"""3D colour lookup tables: `lut3d` and what makes, mixes and regularises the tables."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from .. import _op
from .. import reference as _reference
from ._validate import _require_device, _require_float, _require_pixels

_INTERPOLATIONS = ("trilinear", "tetrahedral")


def lut3d(
    image: Tensor, lut: Tensor, *, vertices: Tensor | None = None, interpolation: str = "trilinear"
) -> Tensor:
    """Maps every pixel's colour through a 3D lookup table.

    Convention:
        ``lut[c, blue, green, red]`` is output channel ``c`` at a lattice point, red fastest in memory: the order of a
        .cube file, and of ``F.grid_sample`` on ``lut`` at ``2 * image - 1`` with ``align_corners=True``. Colours lie
        in [0, 1]; values outside are clamped. NaN in a pixel makes that pixel NaN (0 in an integer image) and no
        other. Integer images scale by 255 or 65535 and round to nearest, ties to even.

    Args:
        image: ``[B, 3, H, W]`` or ``[3, H, W]``; float32, float16, bfloat16, float64 (CPU), uint8 or uint16; any
            strides. Contiguous and channels_last images are read and written without a copy.
        lut: ``[3, N, N, N]`` for all images or ``[B, 3, N, N, N]`` for each; any float dtype; N from 2 to 129.
        vertices: lattice coordinates of a non-uniform table, ``[3, N]`` or ``[B, 3, N]``, row ``c`` for image channel
            ``c``; strictly increasing from 0 to 1. None for a uniform lattice. The order is checked for CPU tensors in
            eager mode; elsewhere a wrong order gives wrong colours, never an access out of bounds.
        interpolation: ``"trilinear"`` (8 lattice points) or ``"tetrahedral"`` (4, exact on the grey diagonal).

    Returns:
        The mapped image: shape, dtype and device of ``image``; channels_last if ``image`` is, else contiguous.
        Arithmetic is float32, or float64 if any input is. Differentiable (twice) with respect to ``image``, ``lut`` and
        ``vertices``; gradients are bitwise repeatable.

    Raises:
        TypeError: an argument is no tensor or has an unsupported dtype.
        ValueError: a shape, size, device, interpolation or vertex order is wrong.

    Example:
        >>> import torch, pyops
        >>> image = torch.rand(2, 3, 32, 48)
        >>> lut = pyops.identity_lut(33)
        >>> torch.allclose(pyops.lut3d(image, lut), image, atol=1e-6)
        True
        >>> pyops.lut3d((image * 255).byte(), lut, interpolation="tetrahedral").dtype
        torch.uint8

    Cost:
        Reads and writes each pixel once: ``6 * bytes per element * H * W`` bytes; 60 FLOPs a pixel (trilinear), 30
        (tetrahedral). The backward to the table adds one more read of the image and one of the gradient.

    Source:
        Li et al., Real-Time Exposure Correction via Collaborative Transformations and Adaptive Sampling, CVPR 2024,
        section 3; Zeng et al., Learning Image-adaptive 3D Lookup Tables, TPAMI 2020; Yang et al., AdaInt, CVPR 2022
        (non-uniform vertices); Kasson et al. 1995 (tetrahedral interpolation).
    """
    _validate(image, lut, vertices, interpolation)
    batched = image if image.dim() == 4 else image.unsqueeze(0)
    out = torch.ops.pyops.lut3d(batched, lut, vertices, interpolation == "tetrahedral")
    return out if image.dim() == 4 else out.squeeze(0)


def fuse_luts(weights: Tensor, basis: Tensor) -> Tensor:
    """Mixes basis tables into one table per image: ``sum_m weights[b, m] * basis[m]``.

    Args:
        weights: ``[B, M]``, float.
        basis: ``[M, 3, N, N, N]``, the dtype and device of ``weights``.

    Returns:
        ``[B, 3, N, N, N]``, differentiable with respect to both.

    Raises:
        TypeError, ValueError: wrong dtype, rank, or differing M.

    Example:
        >>> basis = torch.stack([identity_lut(17), 1 - identity_lut(17)])
        >>> fuse_luts(torch.tensor([[1.0, 0.0], [0.5, 0.5]]), basis).shape
        torch.Size([2, 3, 17, 17, 17])

    Cost:
        One matrix product, ``2 * B * M * 3 * N**3`` FLOPs; bound by reading ``basis``.

    Source:
        Zeng et al., TPAMI 2020, equation (3); CoTF, CVPR 2024, equation (4).
    """
    _require_float("weights", weights)
    _require_float("basis", basis)
    if weights.dim() != 2:
        raise ValueError(f"weights must be [B, M], got shape {list(weights.shape)}")
    if basis.dim() != 5 or basis.shape[1] != 3 or basis.shape[0] != weights.shape[1]:
        raise ValueError(f"basis must be [M={weights.shape[1]}, 3, N, N, N], got shape {list(basis.shape)}")
    if basis.dtype != weights.dtype:
        raise TypeError(f"basis must have the dtype of weights, {weights.dtype}, got {basis.dtype}")
    _require_device("basis", basis, weights, "weights")
    return (weights @ basis.flatten(1)).unflatten(1, basis.shape[1:])


def identity_lut(
    size: int, *, dtype: torch.dtype = torch.float32, device: torch.device | str | None = None
) -> Tensor:
    """The table ``[3, size, size, size]`` that maps every colour to itself.

    Raises:
        ValueError: ``size`` is not in 2..129. TypeError: ``dtype`` is not floating point.

    Example:
        >>> identity_lut(2)[0, 0, 0]  # red along the last axis
        tensor([0., 1.])
    """
    if not 2 <= size <= 129:
        raise ValueError(f"size must be from 2 to 129, got {size}")
    if not dtype.is_floating_point:
        raise TypeError(f"dtype must be floating point, got {dtype}")
    return _reference.identity_lut(size, dtype=dtype, device=device)


def lut_smoothness(lut: Tensor) -> Tensor:
    """Total variation of a table: the mean squared step between neighbours, summed over the three axes.

    Args:
        lut: ``[..., 3, N, N, N]``, float.

    Returns:
        A scalar; for the identity ``1 / (N - 1)**2``. Differentiable.

    Example:
        >>> round(lut_smoothness(identity_lut(11)).item(), 6)
        0.01

    Source:
        Zeng et al., TPAMI 2020, equation (5).
    """
    _validate_lut(lut)
    return _reference.lut_smoothness(lut)


def lut_monotonicity(lut: Tensor) -> Tensor:
    """How far a table is from rising: the mean downward step between neighbours, summed over the three axes.

    Args:
        lut: ``[..., 3, N, N, N]``, float.

    Returns:
        A scalar hinge, 0 exactly when no channel falls along any axis. Differentiable.

    Example:
        >>> lut_monotonicity(identity_lut(11)).item()
        0.0

    Source:
        Zeng et al., TPAMI 2020, equation (7).
    """
    _validate_lut(lut)
    return _reference.lut_monotonicity(lut)


# ---- validation ------------------------------------------------------------------------------------------------------


def _validate_lut(lut: Tensor) -> None:
    _require_float("lut", lut)
    shape = lut.shape
    if (
        lut.dim() < 4
        or shape[-4] != 3
        or not shape[-1] == shape[-2] == shape[-3]
        or not 2 <= shape[-1] <= 129
    ):
        raise ValueError(
            f"lut must be [3, N, N, N] or [B, 3, N, N, N] with N from 2 to 129, got {list(shape)}"
        )


def _validate(image: Tensor, lut: Tensor, vertices: Tensor | None, interpolation: str) -> None:
    _require_pixels("image", image)
    if image.dim() not in (3, 4) or image.shape[-3] != 3:
        raise ValueError(f"image must be [B, 3, H, W] or [3, H, W], got shape {list(image.shape)}")
    _validate_lut(lut)
    batch = image.shape[0] if image.dim() == 4 else 1
    if lut.dim() > 5 or (lut.dim() == 5 and lut.shape[0] != batch):
        raise ValueError(
            f"lut must be [3, N, N, N] or [B={batch}, 3, N, N, N] like image, got shape {list(lut.shape)}"
        )
    _require_device("lut", lut, image, "image")
    if interpolation not in _INTERPOLATIONS:
        raise ValueError(f"interpolation must be 'trilinear' or 'tetrahedral', got {interpolation!r}")
    if vertices is not None:
        _validate_vertices(vertices, image, batch, lut.shape[-1])


def _validate_vertices(vertices: Tensor, image: Tensor, batch: int, size: int) -> None:
    _require_float("vertices", vertices)
    batched = vertices.dim() == 3
    if (
        vertices.dim() not in (2, 3)
        or vertices.shape[-2:] != (3, size)
        or (batched and vertices.shape[0] != batch)
    ):
        raise ValueError(
            f"vertices must be [3, N={size}] or [B={batch}, 3, N={size}], got shape {list(vertices.shape)}"
        )
    _require_device("vertices", vertices, image, "image")
    if _op.values_visible(vertices):
        v = vertices.detach()
        if not bool((v.diff(dim=-1) > 0).all()):
            raise ValueError("vertices must be strictly increasing along the last axis")
        if not bool((v[..., 0].abs() <= 1e-4).all() and ((v[..., -1] - 1).abs() <= 1e-4).all()):
            raise ValueError("vertices must run from 0 to 1 along the last axis")


# ---- what PyTorch needs to know of the operators ---------------------------------------------------------------------


def _fake(image, lut, vertices, tetrahedral):
    return _op.empty_like_image(image)


def _fake_backward(grad, image, lut, vertices, tetrahedral, need_image, need_lut, need_vertices):
    return (
        _op.empty_like_image(image) if need_image else image.new_empty(0),
        lut.new_empty(lut.shape if need_lut else 0),
        vertices.new_empty(vertices.shape)
        if need_vertices and vertices is not None
        else _nothing(lut, vertices),
    )


def _nothing(lut, vertices):
    return (lut if vertices is None else vertices).new_empty(0)


def _setup_context(ctx, inputs, output):
    image, lut, vertices, ctx.tetrahedral = inputs
    ctx.save_for_backward(image, lut, vertices)


def _backward(ctx, grad):
    need = ctx.needs_input_grad[:3]
    grads = torch.ops.pyops.lut3d_backward(grad, *ctx.saved_tensors, ctx.tetrahedral, *need)
    return *(g if n else None for g, n in zip(grads, need, strict=True)), None


def _setup_context_backward(ctx, inputs, output):
    *tensors, ctx.tetrahedral, need_image, need_lut, need_vertices = inputs
    ctx.need = (need_image, need_lut, need_vertices)
    ctx.save_for_backward(*tensors)


def _double_backward(ctx, *upstream):
    def reference(image, lut, vertices):
        return _reference.lut3d(
            image, lut, vertices=vertices, interpolation=_INTERPOLATIONS[int(ctx.tetrahedral)]
        )

    needed = [g if n else None for g, n in zip(upstream, ctx.need, strict=True)]
    return *_op.second_derivative(reference, ctx.saved_tensors, needed), None, None, None, None


def _fold_images(t, dim, n):
    folded = _op.fold(t, dim, n)
    return folded.flatten(0, 1), folded.shape[1]


def _fold_table(table, dim, n, batch, rank, share):
    """A table (LUT of rank 4, vertices of rank 2, one more with a batch axis) for each of the n * batch images."""
    if table is None or (share and dim is None and table.dim() == rank):
        return table
    folded = _op.fold(table, dim, n)
    if folded.dim() == rank + 1:
        folded = folded.unsqueeze(1).expand(n, batch, *folded.shape[1:])
    return folded.flatten(0, 1)


def _vmap(info, in_dims, image, lut, vertices, tetrahedral):
    n = info.batch_size
    images, batch = _fold_images(image, in_dims[0], n)
    luts = _fold_table(lut, in_dims[1], n, batch, 4, share=True)
    axes = _fold_table(vertices, in_dims[2], n, batch, 2, share=True)
    return torch.ops.pyops.lut3d(images, luts, axes, tetrahedral).unflatten(0, (n, batch)), 0


def _vmap_backward(info, in_dims, grad, image, lut, vertices, tetrahedral, *need):
    n = info.batch_size
    grads, batch = _fold_images(grad, in_dims[0], n)
    images, _ = _fold_images(image, in_dims[1], n)
    luts = _fold_table(lut, in_dims[2], n, batch, 4, share=False)
    axes = _fold_table(vertices, in_dims[3], n, batch, 2, share=False)
    results = torch.ops.pyops.lut3d_backward(grads, images, luts, axes, tetrahedral, *need)

    def unfold(result, needed, like, dim, rank):
        if not needed or like is None:
            return result.expand(n, 0)
        result = result.unflatten(0, (n, batch))
        return result.sum(1) if like.dim() - (dim is not None) == rank else result

    ranks = (None, 4, 2)
    inputs = zip(results, need, (image, lut, vertices), in_dims[1:4], ranks, strict=True)
    return tuple(unfold(*item) for item in inputs), (0, 0, 0)


_declare = partial(_op.declare, stem="lut3d")
_declare("lut3d", fake=_fake, vmap=_vmap, setup_context=_setup_context, backward=_backward)
_declare(
    "lut3d_backward",
    fake=_fake_backward,
    vmap=_vmap_backward,
    setup_context=_setup_context_backward,
    backward=_double_backward,
)
