"""Writes the pages of docs/plan/ that are made of code: formulas.md, published.md and stories.md.

    .venv/bin/python benchmarks/plan_pages.py

A test compares the first two with what is in the repository.
"""

from pathlib import Path

from typer.testing import CliRunner

from mortice.cli import app
from mortice.plan.formulas import FORMULAS
from mortice.plan.published import names, published
from mortice.plan.words import significant

DOCS = Path(__file__).parent.parent / "docs" / "plan"


def formulas() -> str:
    """One section a formula, in the order of the registry."""
    parts = [
        "# Formulas",
        "",
        "Made of `src/mortice/plan/formulas.py` by `benchmarks/plan_pages.py`; `mortice plan "
        "explain NAME` prints one.",
    ]
    for entry in FORMULAS:
        parts += ["", f"## {entry.title}", "", f"`{entry.name}`", "", f"    {entry.formula}", ""]
        parts += [f"- {symbol}: {meaning}" for symbol, meaning in entry.inputs.items()]
        parts += [f"- Source: {entry.source}.", f"- Holds for: {entry.holds}.", f"- Code: `{entry.code}`."]
    return "\n".join(parts) + "\n"


def published_page() -> str:
    """Every cell of every published table beside ours."""
    parts = [
        "# Published tables next to ours",
        "",
        "Made by `benchmarks/plan_pages.py` from the cells in `specs/catalogue/published/`; "
        "`mortice plan explain step3.table6` prints one table.",
    ]
    for name in names():
        table = published(name)
        parts += [
            "",
            f"## {table.title} (`{name}`)",
            "",
            f"{table.source}. {table.num_agreeing} of {len(table.cells)} cells agree: {table.rule}.",
            "",
            "| | | printed | ours | difference | agrees |",
            "| --- | --- | ---: | ---: | ---: | --- |",
        ]
        for cell in table.cells:
            off = cell.ours / cell.printed - 1
            said = "yes" if cell.agrees else "no"
            printed, ours = _figure(cell.printed), _figure(cell.ours)
            parts.append(f"| {cell.row} | {cell.column} | {printed} | {ours} | {100 * off:+.1f} % | {said} |")
    return "\n".join(parts) + "\n"


def _figure(value: float) -> str:
    return f"{value:.3e}" if value >= 1e6 or value < 1e-3 else significant(value, 4)


STORIES: tuple[tuple[str, tuple[tuple[str, str], ...]], ...] = (
    (
        "A lab with H20s and H800s",
        (
            (
                "Eight servers of H800 and as many of H20 stand there, and Step-3 shall be served at "
                "20 tokens a second. Where "
                "does a token cost least at the roofline?",
                "cost --model step-3,deepseek-v3 --hardware h800,h20 --context 8192,32768 "
                "--convention published",
            ),
            (
                "Two kinds promise 13 to 16 % for Step-3 and nothing for DeepSeek-V3, whose attention "
                "wants the H800 too. That is "
                "before links, launches and whole servers. With them:",
                "afd --model step-3 --hardware h20/h800 --context 8192 --packages 128",
            ),
            (
                "The cut loses to H800s that keep both together. At 8K an H20 fills its stage with 28 "
                "sequences, so 72 packages "
                "carry under two thirds of the batch of 48 H800s, and the pipeline waits for the sum of its stages. "
                "Side by side:",
                "compare --model step-3 --plan h800 --plan h20 --plan h20/h800 --plan h800/h800 "
                "--context 8192",
            ),
            (
                "So the lab keeps H800s for this model. The H20s are not idle: grouped attention "
                "looks like theirs in the published "
                "tables, but its sixteen query rows fill a quarter of a matrix tile, which the honest "
                "convention counts:",
                "cost --model qwen3-235b-a22b --hardware h800,h20 --context 8192 --convention honest",
            ),
        ),
    ),
    (
        "A start-up with eight H200s",
        (
            (
                "One machine, an 8B model, an assistant with prompts of 8K and short answers, first "
                "token within a second and 15 ms "
                "a token. Prefill and decode apart?",
                "deploy --model llama-3.1-8b --hardware h200 --packages 8 --input-len 8192 --output-len 64 "
                "--slo-ttft-ms 1000 --slo-tpot-ms 15",
            ),
            (
                "Yes. For a chat with short prompts and a loose limit the same machine should not be cut:",
                "deploy --model llama-3.1-8b --hardware h200 --packages 2 --input-len 64 --output-len "
                "512 --slo-tpot-ms 200",
            ),
            (
                "Does a hand-over hide, and is a prefix cache on another machine worth its network?",
                "kv --model llama-3.1-8b --hardware h200 --context 8192 --kv bf16",
            ),
        ),
    ),
    (
        "A hardware architect asks what an NPU needs",
        (
            (
                "Which attention designs would keep a card with the arithmetic of a 910B busy, and "
                "which leave it idle?",
                "roofline --model step-3,deepseek-v3,qwen3-235b-a22b,llama-4-maverick --hardware "
                "ascend-910b,h20,h800",
            ),
            (
                "Experts: how much network does a card of that kind need for today's sparsity?",
                "density --model deepseek-v3,kimi-k2,step-3 --hardware ascend-910b,h800 --convention "
                "published",
            ),
            (
                "What does a domain of a whole rack buy, and where does it buy nothing?",
                "supernode --model deepseek-v3 --rack gb200-nvl72,cloudmatrix384,vera-rubin-nvl144-cpx",
            ),
            (
                "And the other way round: given H20-like memory for attention and H800-like "
                "arithmetic for experts, which model "
                "should be built?",
                "design --attention-hardware h20 --ffn-hardware h800 --rank 16384",
            ),
        ),
    ),
)


def stories() -> str:
    parts = [
        "# Three stories",
        "",
        "Commands and their real output, written by `benchmarks/plan_pages.py`. Each command "
        "also lists what it assumed; those "
        "lines are left out here.",
    ]
    for title, steps in STORIES:
        parts += ["", f"## {title}"]
        for words, command in steps:
            parts += ["", words, "", "```console", f"$ mortice plan {command}", _output(command), "```"]
    return "\n".join(parts) + "\n"


def _output(command: str) -> str:
    done = CliRunner().invoke(app, ["plan", *command.split()], catch_exceptions=False)
    if done.exit_code != 0:
        raise SystemExit(f"mortice plan {command}: {done.output}")
    lines = []
    skipping = False
    for line in done.stdout.splitlines():
        if line.startswith("assumed, because not given"):
            skipping = True
        elif skipping and not line.startswith("  "):
            skipping = False
        if not skipping and not line.startswith("formulas:"):
            lines.append(line.rstrip())
    return "\n".join(lines).strip()


def main() -> None:
    for name, page in (
        ("formulas.md", formulas()),
        ("published.md", published_page()),
        ("stories.md", stories()),
    ):
        (DOCS / name).write_text(page)
        print(f"docs/plan/{name}: {len(page) // 1024} KiB")


if __name__ == "__main__":
    main()
