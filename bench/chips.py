# Owns: what the models know of GPUs.
# Must not know: kernels.
from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Chip:
    """Data-sheet numbers, and the code that it runs (sm_80's on sm_86 and sm_89): multiprocessors, sustained GHz,
    memory TB/s, and lanes per cycle and multiprocessor of each unit."""

    name: str
    arch: str
    processors: int
    ghz: float
    memory: float
    fp32: int
    alu: int = 64
    mufu: int = 16
    issue: int = 128
    latency: int = 560  # cycles of a load from memory, bench/model.py's alone (docs/model.md has the sources)
    threads: int = 2048  # resident on a multiprocessor, at most
    shared: int = 228  # KiB a multiprocessor


CHIPS = (
    Chip("A100 80GB", "sm_80", 108, 1.41, 2.04, 64, latency=500, shared=164),
    Chip("H100 SXM", "sm_90", 132, 1.755, 3.35, 128),
    Chip("H200", "sm_90", 132, 1.755, 4.8, 128),
    Chip("B200", "sm_100", 148, 1.965, 8.0, 128, latency=750),
    Chip("RTX 4090", "sm_80", 128, 2.52, 1.008, 128, latency=620, threads=1536, shared=100),
)
