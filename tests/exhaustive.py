# Owns: the walk over logits behind the accuracy claims, run by `make exhaustive`, and its results as they come; pytest
# does not collect it.
# Must not know: losses (curves.py), how its results are shown (numerics_page.py).
"""Compares every loss of one logit with float64, at every float32 logit in [-120, 120] and every finite bfloat16 and
float16.

Prints the worst error of each curve with its logit, the mean over bit patterns and the number of NaN and infinite
results; exits with 1 when one is above its claim (tolerances.py) or a result is not finite. --every 61 looks at each
61st float32 only, for a quick impression; an odd number, so that the last bits vary. --csv keeps the results for
docs/numerics.md: python tests/numerics_page.py --write. It is written anew, row by row; after an interruption --resume
goes on. The float64 oracle is compiled for this machine (tests/exact); without a compiler --python takes PyTorch's.
"""

from __future__ import annotations

import argparse
import csv
import datetime
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import focal_ext
import torch
from conftest import REPOSITORY, why_not_under_test
from curves import EDGES, FAMILY, OURS, PEER_CURVES, Curve, Errors, measured
from exact.exact import Exact, why_impossible
from torch import Tensor
from tolerances import claim

if TYPE_CHECKING:
    from tqdm import tqdm

CHUNK = 2**18  # a call of 100 microseconds is a twentieth of it
LAST = 1123024896  # the bit pattern of float32 120
HALVES = (torch.bfloat16, torch.float16)
IDENTITY = ("implementation", "family", "loss", "target", "settings", "dtype", "what")
RESULTS = (":!bench/results/numerics.csv", ":!docs/numerics.md")  # what a run changes is no change of the source
Measure = Callable[[Curve, Tensor], dict[str, Errors]]
Row = dict[str, object]


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


def walk(
    curve: Curve, dtype: torch.dtype, every: int, measure: Measure, pool: ThreadPoolExecutor, bar: tqdm[None]
) -> dict[str, Errors]:
    """The errors of one curve's loss and gradient over all its logits."""
    if dtype != torch.float32:
        return measured(curve, all_finite(dtype))
    jobs = [(first, sign) for first in range(0, LAST + 1, CHUNK * every) for sign in (1, -1)]

    def parts() -> Iterator[dict[str, Errors]]:
        for part in pool.map(lambda job: measure(curve, float32_chunk(job[0], every, job[1])), jobs):
            bar.update(part["loss"].count)
            yield part

    return added(parts())


def identity(curve: Curve, family: str, dtype: torch.dtype, what: str) -> tuple[str, ...]:
    return (
        curve.implementation,
        family,
        curve.loss,
        f"{curve.target:g}",
        curve.settings,
        str(dtype).removeprefix("torch."),
        what,
    )


def row(curve: Curve, family: str, dtype: torch.dtype, what: str, errors: Errors, every: int, seconds: float) -> Row:
    facts = dict(zip(IDENTITY, identity(curve, family, dtype, what)))
    found = {
        "worst_ulp": f"{errors.worst:.4g}",
        "at": repr(errors.at),
        "mean_ulp": f"{errors.mean:.4g}",
        "good_below": f"{errors.good_below:.4g}",
    }
    counts = {
        "count": errors.count,
        "not_finite": errors.not_finite,
        **{f"upto_{edge:g}": n for edge, n in zip((*EDGES, float("inf")), errors.bins)},
    }
    return {**facts, **found, **counts, "every": every if dtype == torch.float32 else 1, "seconds": f"{seconds:.1f}"}


def git(*arguments: str) -> str:
    return subprocess.run(
        ["git", *arguments], cwd=REPOSITORY, capture_output=True, text=True, check=False
    ).stdout.strip()


def provenance() -> Row:
    info = focal_ext.build_info()
    commit = git("describe", "--always") + (
        "-dirty" if git("status", "--porcelain", "--untracked-files=no", "--", ".", *RESULTS) else ""
    )
    return {
        "cpu_level": info["cpu_level"],
        "torch": info["torch"],
        "focal_ext": info["version"],
        "commit": commit,
        "date": datetime.datetime.now(datetime.timezone.utc).date(),
    }


def earlier(path: Path, facts: Row, every: int) -> dict[tuple[str, ...], Row]:
    """The rows that an interrupted run of the same source wrote, by what they are about."""
    if not path.exists():
        return {}
    if str(facts["commit"]).endswith("-dirty"):
        sys.exit(
            "--resume: the source differs from its commit, so that nobody can tell what the rows are of; commit "
            "first, or start anew"
        )
    with path.open(newline="") as file:
        rows = [
            row
            for row in csv.DictReader(file)
            if all(row[name] == str(facts[name]) for name in ("cpu_level", "torch", "commit"))
        ]
    return {
        tuple(str(row[name]) for name in IDENTITY): {**row}
        for row in rows
        if row["every"] == str(every) or row["dtype"] != "float32"
    }


def done(old: dict[tuple[str, ...], Row], family: str, curve: Curve, dtype: torch.dtype) -> bool:
    """Drops what is to be measured again from `old`: half a result, and one that failed or may have before it was
    rounded."""
    keys = [identity(curve, family, dtype, what) for what in ("loss", "gradient")]
    rows = [old[key] for key in keys if key in old]
    most = claim(family, dtype, curve.cancels).units if curve.implementation == OURS else float("inf")
    if len(rows) == 2 and all(
        float(str(row["worst_ulp"])) < most and (curve.implementation != OURS or row["not_finite"] == "0")
        for row in rows
    ):
        return True
    for key in keys:
        old.pop(key, None)
    return False


def write(path: Path, rows: Iterable[Row], mode: str) -> None:
    with path.open(mode, newline="") as file:
        for each in rows:
            writer = csv.DictWriter(file, [*each], lineterminator="\n")
            if file.tell() == 0:
                writer.writeheader()
            writer.writerow(each)


def chosen(options: argparse.Namespace) -> Iterator[tuple[str, Curve, torch.dtype]]:
    for family, curves in FAMILY.items():
        for curve in curves if options.loss is None or family in options.loss else ():
            if options.gamma is None or {
                value for name, value in curve.options if "gamma" in name or name == "beta"
            } & set(options.gamma):
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
    parser.add_argument(
        "--resume", action="store_true", help="keep the rows of this commit that --csv has, measure the others"
    )
    parser.add_argument(
        "--python", action="store_true", help="an oracle of PyTorch alone: no C++ compiler, ten times as long"
    )
    options = parser.parse_args()
    reason = why_not_under_test()
    if reason:
        sys.exit(f"the native library is not under test: {reason}")
    if why_impossible() and not options.python:
        sys.exit(f"the compiled oracle {why_impossible()}: set CXX, or take ten times as long with --python")
    if options.resume and not options.csv:
        parser.error("--resume needs --csv, whose rows are to be kept")
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        return int(run(options, measured if options.python else Exact(Path(folder)).measured))


def run(options: argparse.Namespace, measure: Measure) -> bool:
    """Whether a curve is above its claim."""
    facts, failed = provenance(), False
    old = earlier(options.csv, facts, options.every) if options.resume else {}
    todo = [each for each in chosen(options) if not done(old, *each)]
    if options.csv:
        write(options.csv, old.values(), "w")
    logits = 2 * len(range(0, LAST + 1, options.every)) * sum(dtype == torch.float32 for _, _, dtype in todo)
    from tqdm import tqdm  # here: the tests that import this file do without it

    with ThreadPoolExecutor(options.threads) as pool, tqdm(total=logits, unit="logit", unit_scale=True) as bar:
        for family, curve, dtype in todo:
            start = time.monotonic()
            bar.set_description(f"{curve}")
            found = walk(curve, dtype, options.every, measure, pool, bar)
            for what, errors in found.items():
                over = curve.implementation == OURS and (
                    errors.worst > claim(family, dtype, curve.cancels).units or errors.not_finite > 0
                )
                failed |= over
                verdict = "FAILED" if over else "ok" if curve.implementation == OURS else "a peer"
                bar.write(
                    f"{dtype} {curve}, {what}: worst {errors.worst:.4g} ULP at {errors.at!r}, mean {errors.mean:.3f} "
                    f"over {errors.count:,}, not finite {errors.not_finite}: {verdict}"
                )
            if options.csv:
                seconds = time.monotonic() - start
                write(
                    options.csv,
                    [
                        {**row(curve, family, dtype, what, errors, options.every, seconds), **facts}
                        for what, errors in found.items()
                    ],
                    "a",
                )
    return failed


if __name__ == "__main__":
    sys.exit(main())
