"""What the two players minimise, one term at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from frostline.errors import ShapeError, StepError


def real_loss(scores: Tensor) -> Tensor:
    """Mean of -log sigmoid(score): what a discriminator pays for real images, and a generator for its own.

    Source: Goodfellow et al., Generative adversarial nets (2014), the non-saturating form.
    """
    return F.softplus(-_wide(scores)).mean()


def fake_loss(scores: Tensor) -> Tensor:
    """Mean of -log(1 - sigmoid(score)): what a discriminator pays for generated images."""
    return F.softplus(_wide(scores)).mean()


def r1_penalty(score: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    """Half the squared gradient of the score at each image, summed over the image's entries; a mean over images.

    Autocast is left: in bfloat16 the penalty's gradient was off by 7 %, and in float16 it overflowed under any loss
    scale.

    Args:
        score: Images (B, ...) -> one number an image, (B,).
        images: Real ones, (B, ...): one image a row, or the mean would be over parts of images, and the penalty too
            weak by their number.

    Raises:
        ShapeError: Other than one number an image.
        StepError: The score does not depend on the images.

    Source: Mescheder et al., Which training methods for GANs do actually converge? (2018), equation 9.
    """
    with torch.autocast(images.device.type, enabled=False):
        images = _wide(images.detach()).clone().requires_grad_()
        scores = score(images)
        if scores.shape != images.shape[:1]:
            raise ShapeError("the scores", expected=(len(images),), actual=tuple(scores.shape), where="r1_penalty")
        if not scores.requires_grad:
            raise StepError(
                "the score has no graph", where="r1_penalty", do="let it depend on the images, outside no_grad"
            )
        (gradient,) = torch.autograd.grad(scores.sum(), images, create_graph=True, allow_unused=True)
        if gradient is None:
            raise StepError("the score does not depend on the images", where="r1_penalty")
        return 0.5 * gradient.square().flatten(1).sum(1).mean()


def is_penalised(step: int, every: int) -> bool:
    """Whether the penalty that is due every so many steps is due in this one; it then counts `every` times.

    Source: Karras et al., StyleGAN2 (2020), lazy regularisation.
    """
    return step % every == 0


def label_loss(logits: Tensor, labels: Sequence[Tensor], groups: Sequence[int]) -> Tensor:
    """The sum of the cross-entropies of several groups of labels ("MCE"), a mean over images.

    Args:
        logits: Of all groups, one behind another, (B, sum of groups).
        labels: Of each group, int64 (B,).
        groups: How many labels each has.

    Raises:
        ShapeError: Logits of another width, or another number of groups.
    """
    if logits.shape[1:] != (sum(groups),) or len(labels) != len(groups):
        expected = ("B", f"{sum(groups)} for {len(labels)} groups of {tuple(groups)}")
        raise ShapeError("the logits", expected=expected, actual=tuple(logits.shape), where="label_loss")
    parts = _wide(logits).split(list(groups), 1)
    losses = [F.cross_entropy(part, label) for part, label in zip(parts, labels, strict=True)]
    return torch.stack(losses).sum()


def _wide(values: Tensor) -> Tensor:
    return values.to(torch.promote_types(values.dtype, torch.float32))
