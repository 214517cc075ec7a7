"""`mortice plan deploy | report`: the document that `serve` reads, and every answer on one page."""

from pathlib import Path
from typing import Annotated

import typer

from mortice.cli.plan_output import (
    ContextOption,
    ConventionName,
    HardwareOption,
    JsonOption,
    ModelOption,
    PlotOption,
    PriceOption,
    ProfileOption,
    TpotOption,
    check_plot,
    emit,
)
from mortice.cost import convention
from mortice.plan import inputs
from mortice.plan.deploy import Traffic, Workers, deploy_question
from mortice.plan.measured import read_measured
from mortice.plan.page.render import write
from mortice.plan.placement import formats_for
from mortice.plan.report import report as build_report
from mortice.specs.errors import RequestError
from mortice.specs.slo import SLO


def deploy(
    model: ModelOption,
    hardware: Annotated[str, typer.Option(help="One name or hardware file.")] = "h200",
    packages: Annotated[
        int | None, typer.Option(help="Packages to use. Default: the fewest for --rate.")
    ] = None,
    rate: Annotated[
        float | None, typer.Option(help="Requests a second. Default: as many as the SLO allows.")
    ] = None,
    input_len: Annotated[int, typer.Option(help="Prompt tokens.")] = 1024,
    output_len: Annotated[int, typer.Option(help="Answer tokens.")] = 128,
    slo_ttft_ms: Annotated[float | None, typer.Option(help="Limit on TTFT.")] = 500.0,
    slo_tpot_ms: Annotated[float | None, typer.Option(help="Limit on TPOT.")] = 50.0,
    slo_e2e_ms: Annotated[float | None, typer.Option(help="Limit on the whole.")] = None,
    target: Annotated[float, typer.Option(help="Share that must meet all limits.")] = 0.9,
    weights: Annotated[
        str, typer.Option(help="Dtype of weights: bf16, int8 or int4, as serve runs them.")
    ] = "bf16",
    serve_model: Annotated[str | None, typer.Option(help="What serve shall load. Default: --model.")] = None,
    profile: ProfileOption = None,
    out: Annotated[Path | None, typer.Option(help="Deployment document, YAML. Default: print it.")] = None,
    as_json: JsonOption = False,
    plot: PlotOption = None,
) -> None:
    """How many prefill and decode workers, or no cut at all; writes the document for `serve --deployment`."""
    check_plot(plot)
    if out is not None and not out.absolute().parent.is_dir():
        raise RequestError(f"--out: there is no folder {out.parent}", param="--out")
    devices = inputs.hardware(hardware, convention("honest"))
    if len(devices) != 1:
        raise RequestError("hardware: a deployment is of one device", param="hardware")
    traffic = Traffic(
        prompt_len=input_len,
        output_len=output_len,
        rate=rate,
        slo=SLO(ttft_ms=slo_ttft_ms, tpot_ms=slo_tpot_ms, e2e_ms=slo_e2e_ms, target=target),
    )
    traffic.check()
    workers = Workers(
        inputs.one_model(model),
        devices[0],
        traffic,
        formats_for(devices[0], weights, "bf16"),
        read_measured(profile, devices),
    )
    answer, document = deploy_question(workers, packages, serve_model or model, out)
    if out is not None:
        try:
            out.write_text(document)
        except OSError as error:
            raise RequestError(f"cannot write {out}: {error.strerror}", param="--out") from error
    emit(answer, as_json=as_json, plot=plot)
    if out is None and not as_json:
        print(f"\n{document}", end="")


def report(
    model: ModelOption,
    hardware: HardwareOption = "h200,h20",
    out: Annotated[Path, typer.Option(help="HTML file; it needs nothing but itself.")] = Path("report.html"),
    context: ContextOption = "8192",
    tpot: TpotOption = 50.0,
    convention_name: Annotated[ConventionName, typer.Option("--convention")] = ConventionName.honest,
    price: PriceOption = None,
    profile: ProfileOption = None,
) -> None:
    """Every question about one model on one page: tables, pictures, assumptions, light and dark."""
    if not out.absolute().parent.is_dir():
        raise RequestError(f"--out: there is no folder {out.parent}", param="--out")
    rule = convention(convention_name.value)
    devices = inputs.hardware(hardware, rule, inputs.parse_prices(price or []))
    command = f"mortice plan report --model {model} --hardware {hardware} --out {out.name}"
    shape = inputs.one_model(model)
    page = build_report(
        shape,
        devices,
        rule,
        context=inputs.context(context),
        tpot_s=inputs.tpot_s(tpot),
        command=command,
        measured=read_measured(profile, devices),
    )
    write(page, out)
    print(f"{shape.name} on {', '.join(d.name for d in devices)}: {out} ({len(page) // 1024} KiB)")
