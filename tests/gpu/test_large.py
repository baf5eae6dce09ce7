# Owns: more logits than 31 and 32 bits can count, where the GPU has the memory.
# Must not know: values of ordinary sizes.
from __future__ import annotations

import focal_ext
import pytest
import torch

CLASSES = 80
# bf16 logits, their gradient, room
SIZES = [bits for bits in (31, 32) if torch.cuda.mem_get_info()[0] > 3 * 2 * 2**bits]


@pytest.mark.parametrize("bits", SIZES)
def test_rows_before_and_after_the_border_get_what_they_get_alone(bits: int) -> None:
    rows = 2**bits // CLASSES + 1000
    x = torch.empty(rows, CLASSES, device="cuda", dtype=torch.bfloat16).normal_(-4, 2).requires_grad_()
    ids = torch.full((rows,), -1, device="cuda")
    ids[::1000] = torch.arange(len(ids[::1000]), device="cuda") % CLASSES
    ids[500::1000] = -2
    loss = focal_ext.sigmoid_focal_loss(x, ids, reduction="sum")
    (gradient,) = torch.autograd.grad(loss, x)

    total = torch.zeros((), device="cuda", dtype=torch.float64)
    part = rows // 16 + 1
    with torch.no_grad():
        for begin in range(0, rows, part):
            total += focal_ext.sigmoid_focal_loss(x[begin : begin + part], ids[begin : begin + part], reduction="sum")
    assert torch.allclose(loss.double(), total, rtol=1e-5)

    border = 2**bits // CLASSES
    for begin in (0, border // 2, border - 500, rows - 500):
        some = slice(begin, begin + 500)
        alone = x.detach()[some].clone().requires_grad_()
        (want,) = torch.autograd.grad(focal_ext.sigmoid_focal_loss(alone, ids[some], reduction="sum"), alone)
        # a row may take the stream here and the careful path there: once in a while they round to neighbours
        assert torch.allclose(gradient[some].float(), want.float(), rtol=2**-7, atol=0)
        assert not gradient[some][ids[some] == -2].any()
