"""Measures every named scheme on Gaussian numbers and writes the table of schemes in README.md.

``python bench/schemes.py`` writes bench/results/schemes.json, of which bench/readme.py makes the table.
"""

import json
from pathlib import Path

import torch

import lsfast
from lsfast.formats import element_format
from lsfast.studies.checkpoint import stored_bits

RESULTS = Path(__file__).parent / "results" / "schemes.json"
COUNT = 2**20


def measured(name: str) -> dict[str, object]:
    """Return a scheme's description and what it loses of a 1024 x 1024 matrix of standard normal numbers."""
    x = torch.randn(1024, 1024, generator=torch.Generator().manual_seed(0))
    scheme = lsfast.scheme(name)
    element = element_format(scheme.element)
    _, statistics = lsfast.fake_quantize(x, scheme, statistics=True)
    return {
        "scheme": name,
        "element": scheme.element,
        "block": _block(scheme.block),
        "scale": f"{scheme.scale}{' over fp32' if scheme.tensor_scale else ''}" if scheme.scale else "-",
        "bits": stored_bits(scheme, x.shape) / x.numel(),
        "smallest": element.smallest_subnormal,
        "largest": element.largest,
        "sqnr": float(statistics.sqnr),
        "saturated": float(statistics.saturated / statistics.count),
        "flushed": float(statistics.flushed / statistics.count),
    }


def _block(block: object) -> str:
    if block is None:
        return "-"
    return f"{block[0]} x {block[1]}" if isinstance(block, tuple) else str(block)


if __name__ == "__main__":
    rows = [measured(name) for name in lsfast.schemes() if name != "fp32"]
    RESULTS.write_text(json.dumps({"schemes": rows}, indent=2) + "\n")
