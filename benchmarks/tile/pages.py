"""Writes docs/tile/kernels: a page for each kernel of the registry, with its tables out of docs/performance.md.

python benchmarks/tile/pages.py
"""

import re
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "src"))

from mortice.ops.kernels.cases import CASES, Draw  # noqa: E402 - a script that runs from a checkout

FOLDER = ROOT / "docs/tile/kernels"
SECTIONS = ("Kernels in the tile language, H200", "Kernels of the kernel language on a CPU")
# Whole tables by their first header cell, or rows by their first cell.
TABLES = {
    "gemm": "GEMM NT bf16|thin GEMM", "attention": "attention forward", "attention_backward": "attention backward",
    "attention_backward_keys": "attention backward", "attention_backward_queries": "attention backward",
    "gemm_thin": "thin GEMM", "gemm_thin_split": "thin GEMM", "gemm_fp8": "GEMM NT e4m3|e4m3, scales",
    "grouped_gemm_fp8": "e4m3, scales",
}  # fmt: skip
ROWS = {
    "gemm": "GEMM NT|matrix product of level 1|gemm 4096|gemm 8192", "rms_norm": "RMSNorm",
    "attention": "attention 1|attention, causal|attention full|attention causal", "paged_decode": "paged GQA decode",
    "swiglu": "SwiGLU", "rotary": "rotary", "gemv": "GEMV", "mla_decode": "MLA decode",
}  # fmt: skip


def tables(text: str) -> list[tuple[str, str, list[str], list[list[str]]]]:
    """Section, its first paragraph, header cells and rows of each table in the kernels' sections."""
    found = []
    for section in re.split(r"^## ", text, flags=re.MULTILINE)[1:]:
        title, _, body = section.partition("\n")
        if title.strip() not in SECTIONS:
            continue
        about = body.strip().split("\n\n")[0]
        for block in re.findall(r"((?:^\|.*\n?)+)", body, re.MULTILINE):
            lines = [
                [cell.strip() for cell in line.strip().strip("|").split("|")]
                for line in block.strip().splitlines()
            ]
            found.append((title.strip(), about, lines[0], lines[2:]))
    return found


def measured(name: str, text: str) -> list[str]:
    out: list[str] = []
    for title, about, header, rows in tables(text):
        whole = name in TABLES and re.match(TABLES[name], header[0])
        kept = rows if whole else [row for row in rows if name in ROWS and re.match(ROWS[name], row[0])]
        if not kept:
            continue
        if title not in out:
            out += [title, "", about, ""]
        out += ["| " + " | ".join(header) + " |", "| " + " | ".join(["---"] * len(header)) + " |"]
        out += ["| " + " | ".join(row) + " |" for row in kept]
        out.append("")
    return out or ["Not measured beside others yet.", ""]


def page(name: str, case: Any, text: str) -> str:
    kernel = case.kernel
    source = Path(kernel.function.__code__.co_filename).relative_to(ROOT)
    trial = case.trial(Draw(f"{name} page"))
    rows = [f"# {name}", "", " ".join((kernel.__doc__ or "").split()), ""]
    rows += [f"Source: [{source.name}](../../../{source}).", "", "| argument | kind |", "| --- | --- |"]
    for parameter in kernel.parameters:
        kind = "tensor" if parameter.scalar is None else f"run-time {parameter.scalar}"
        rows.append(f"| `{parameter.name}` | {kind}{', may be None' if parameter.optional else ''} |")
    rows += ["", "| constant | default | on a CPU | tuning tries |", "| --- | --- | --- | --- |"]
    for key, value in kernel.constants.items():
        tried = ", ".join(map(str, kernel.choices.get(key, ()))) or "–"
        rows.append(f"| `{key}` | {value} | {kernel.cpu.get(key, value)} | {tried} |")
    norm = "equal" if trial.tolerance == 0 else f"relative error up to {trial.tolerance:g}"
    rows += ["", "## Checked", "", f"Against PyTorch on random ragged shapes: {norm} (this draw's types)."]
    rows += [f"`mortice tile check {name} --backend interpreter,c,simulator`", ""]
    if case.shape:
        sizes = ",".join(["64"] * len(case.shape.split(",")))
        rows += [
            f"Explained: `mortice tile explain {name} --shape {sizes}` ({case.shape}), `--target sm_90a` for Hopper.",
            "",
        ]
    return "\n".join([*rows, "## Measured", "", *measured(name, text)])


def pages() -> dict[str, str]:
    """Text by file name."""
    text = (ROOT / "docs/performance.md").read_text()
    made = {f"{name}.md": page(name, case, text) for name, case in CASES.items()}
    index = [
        "# Kernels",
        "",
        "Written by `python benchmarks/tile/pages.py` from the registry; do not edit.",
        "",
    ]
    for name, case in CASES.items():
        first = " ".join((case.kernel.__doc__ or "").split()).split(". ")[0].rstrip(".")
        index.append(f"- [{name}]({name}.md): {first}.")
    return made | {"README.md": "\n".join(index) + "\n"}


def main() -> None:
    FOLDER.mkdir(parents=True, exist_ok=True)
    made = pages()
    for path in FOLDER.glob("*.md"):
        if path.name not in made:
            path.unlink()
    for name, text in made.items():
        (FOLDER / name).write_text(text)


if __name__ == "__main__":
    main()
