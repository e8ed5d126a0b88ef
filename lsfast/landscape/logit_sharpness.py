"""Keskar's sharpness of a language model's logits, in closed form."""

from __future__ import annotations

import torch
from torch import Tensor

from lsfast import checks
from lsfast._native import ops, register_fake


def logit_sharpness(logits: Tensor, targets: Tensor, epsilon: float = 1e-3, ignore_index: int = -100) -> Tensor:
    r"""Return by how much the cross-entropy can rise, in percent, when every logit moves by a small share of itself.

    .. math:: 100 \, \frac{\max_\delta L(z + \delta) - L(z)}{1 + L(z)}, \qquad
              |\delta_i| \le \epsilon (|z_i| + 1), \quad L(z) = \log \sum_i e^{z_i} - z_t

    The derivative of L in each logit has a constant sign, so the maximum is exact: every other logit is raised by its
    bound and that of the target t lowered by its own. One pass over the logits, which are read once.

    Parameters
    ----------
    logits
        [..., classes], float32, float64, bfloat16 or float16; of the last token, or of all.
    targets
        [...], int64, classes.
    epsilon
        In (0, 1). (The one of "To FP8 and Back Again" could not be checked; 1e-3 is Keskar's.)
    ignore_index
        A target that is not counted; its value is 0, as the loss of it is in PyTorch. The mean over the others is
        ``values.sum() / (targets != ignore_index).sum()``.

    Returns
    -------
    Tensor
        [...] float64, on the device of the logits, with no derivative. For epsilon up to 0.1, however small, the
        relative error is at most about (3 log(classes) + 24) units of 2^-24, of 2^-53 for float64 logits. Logits of
        -Inf (a masked vocabulary) have no part in it; NaN where one is NaN or +Inf, or the target's own is -Inf.

    Raises
    ------
    TypeError, ValueError
        If logits are not floating-point, targets are not classes (or ignored) of that shape, or epsilon is not as
        above.

    References
    ----------
    Keskar, Mudigere, Nocedal, Smelyanskiy, Tang: On Large-Batch Training for Deep Learning. ICLR 2017. Lee, Bae, Kim
    et al.: To FP8 and Back Again. 2024.

    Examples
    --------
    >>> lsfast.logit_sharpness(model(tokens)[:, -1], next_tokens)
    tensor([0.2741, 0.3120], dtype=torch.float64)
    """
    checks.floating("logit_sharpness", "logits", logits)
    if logits.dim() == 0 or logits.shape[-1] == 0:
        raise ValueError(f"logit_sharpness: logits must have shape [..., classes], got {list(logits.shape)}")
    if not isinstance(targets, Tensor):
        raise TypeError(f"logit_sharpness: targets must be a tensor, got {type(targets).__name__}")
    if targets.dtype != torch.int64 or targets.shape != logits.shape[:-1] or targets.device != logits.device:
        raise ValueError(
            f"logit_sharpness: targets must be int64 of shape {list(logits.shape[:-1])} on {logits.device}, got "
            f"{targets.dtype} {list(targets.shape)} on {targets.device}"
        )
    if not 0.0 < checks.finite_number("logit_sharpness", "epsilon", epsilon) < 1.0:
        raise ValueError(f"logit_sharpness: epsilon must lie in (0, 1), got {epsilon}")
    if isinstance(ignore_index, bool) or not isinstance(ignore_index, int):
        raise TypeError(f"logit_sharpness: ignore_index must be an integer, got {ignore_index!r}")
    classes = logits.shape[-1]
    wrong = targets[(targets != ignore_index) & ((targets < 0) | (targets >= classes))]
    if len(wrong):
        raise ValueError(
            f"logit_sharpness: targets must lie in 0 .. {classes - 1} or be {ignore_index}, got {int(wrong[0])}"
        )
    rows = logits.detach().reshape(-1, classes)
    result: Tensor = ops.logit_sharpness(rows, targets.reshape(-1), epsilon, ignore_index)
    return result.view(targets.shape)


@register_fake("logit_sharpness")
def _(logits: Tensor, target: Tensor, epsilon: float, ignore_index: int) -> Tensor:
    return logits.new_empty(logits.shape[0], dtype=torch.float64)
