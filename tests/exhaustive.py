# Owns: the walk over logits behind the accuracy claims, run by `make exhaustive`; pytest does not collect it.
# Must not know: losses (curves.py), how its results are shown (numerics_page.py).
"""Compares every loss of one logit with float64, at every float32 logit in [-120, 120] and every finite bfloat16 and float16.

Prints the worst error of each curve with its logit, the mean over bit patterns and the number of NaN and infinite results; exits with 1 when one
is above its claim (tolerances.py) or a result is not finite. --every 61 looks at each 61st float32 only, for a quick impression; an odd number, so
that the last bits vary. --csv keeps the results for docs/numerics.md: python tests/numerics_page.py --write.
"""

from __future__ import annotations

import argparse
import csv
import datetime
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import focal_ext
import torch
from conftest import REPOSITORY, why_not_under_test
from curves import EDGES, FAMILY, OURS, PEER_CURVES, Curve, Errors, measured
from torch import Tensor
from tqdm import tqdm
from tolerances import claim

CHUNK = 2**17  # the oracle's float64 buffers stay in the second-level cache
LAST = 1123024896  # the bit pattern of float32 120
HALVES = (torch.bfloat16, torch.float16)


def float32_chunk(first: int, every: int, sign: int) -> Tensor:
    """CHUNK logits: the magnitudes of the bit patterns first, first + every, ..."""
    last = min(first + CHUNK * every, LAST + 1)
    return torch.arange(first, last, every, dtype=torch.int32).view(torch.float32) * sign


def all_finite(dtype: torch.dtype) -> Tensor:
    x = torch.arange(-(2**15), 2**15, dtype=torch.int16).view(dtype)
    return x[x.isfinite()]


def added(parts: Iterator[dict[str, Errors]]) -> dict[str, Errors]:
    found: dict[str, Errors] = {}
    for part in parts:
        found = {what: found.get(what, Errors()) + errors for what, errors in part.items()}
    return found


def walk(curve: Curve, dtype: torch.dtype, every: int, pool: ThreadPoolExecutor) -> dict[str, Errors]:
    """The errors of one curve's loss and gradient over all its logits."""
    if dtype != torch.float32:
        return measured(curve, all_finite(dtype))
    jobs = [(first, sign) for first in range(0, LAST + 1, CHUNK * every) for sign in (1, -1)]
    return added(pool.map(lambda job: measured(curve, float32_chunk(job[0], every, job[1])), jobs))


def row(curve: Curve, family: str, dtype: torch.dtype, what: str, errors: Errors, every: int, seconds: float) -> dict[str, object]:
    facts = {"implementation": curve.implementation, "family": family, "loss": curve.loss, "target": f"{curve.target:g}", "settings": curve.settings}
    found = {"worst_ulp": f"{errors.worst:.4g}", "at": repr(errors.at), "mean_ulp": f"{errors.mean:.4g}", "good_below": f"{errors.good_below:.4g}"}
    counts = {"count": errors.count, "not_finite": errors.not_finite, **{f"upto_{edge:g}": n for edge, n in zip((*EDGES, float("inf")), errors.bins)}}
    return {**facts, "dtype": str(dtype).removeprefix("torch."), "what": what, **found, **counts, "every": every if dtype == torch.float32 else 1, "seconds": f"{seconds:.1f}"}


def provenance() -> dict[str, object]:
    info = focal_ext.build_info()
    commit = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=REPOSITORY, capture_output=True, text=True, check=False).stdout.strip()
    return {"cpu_level": info["cpu_level"], "torch": info["torch"], "focal_ext": info["version"], "commit": commit, "date": datetime.datetime.now(datetime.timezone.utc).date()}


def chosen(options: argparse.Namespace) -> Iterator[tuple[str, Curve, torch.dtype]]:
    for family, curves in FAMILY.items():
        for curve in curves if options.loss is None or family in options.loss else ():
            if options.gamma is None or {value for name, value in curve.options if "gamma" in name or name == "beta"} & set(options.gamma):
                yield from ((family, curve, dtype) for dtype in (torch.float32, *HALVES))
    if options.loss is None or "peers" in options.loss:
        yield from (("peers", curve, torch.float32) for curve in PEER_CURVES)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--loss", nargs="+", choices=[*FAMILY, "peers"], help="default: all")
    parser.add_argument("--gamma", type=float, nargs="+", help="only curves with one of these exponents")
    parser.add_argument("--every", type=int, default=1, help="look at every n-th float32 only")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--csv", type=Path, help="write a row for each curve, dtype, loss and gradient")
    options = parser.parse_args()
    reason = why_not_under_test()
    if reason:
        sys.exit(f"the native library is not under test: {reason}")
    torch.set_num_threads(1)
    rows, failed = [], False
    with ThreadPoolExecutor(options.threads) as pool:
        for family, curve, dtype in tqdm([*chosen(options)], unit="curve"):
            start = time.monotonic()
            found = walk(curve, dtype, options.every, pool)
            for what, errors in found.items():
                over = curve.implementation == OURS and (errors.worst > claim(family, dtype, curve.cancels).units or errors.not_finite > 0)
                failed |= over
                rows.append(row(curve, family, dtype, what, errors, options.every, time.monotonic() - start))
                verdict = "FAILED" if over else "ok" if curve.implementation == OURS else "a peer"
                tqdm.write(f"{dtype} {curve}, {what}: worst {errors.worst:.4g} ULP at {errors.at!r}, mean {errors.mean:.3f} over {errors.count:,}, not finite {errors.not_finite}: {verdict}")
    if options.csv and rows:
        with options.csv.open("w", newline="") as file:
            writer = csv.DictWriter(file, [*rows[0], *(facts := provenance())], lineterminator="\n")
            writer.writeheader()
            writer.writerows({**each, **facts} for each in rows)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
