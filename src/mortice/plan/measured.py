"""Which kernels a plan is priced with: measured where a profile covers the hardware, modelled elsewhere."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from mortice.cost import Kernels
from mortice.cost.aic import FRAMEWORKS, import_tables
from mortice.cost.calibration import Calibration, calibrate, shipped_calibration
from mortice.cost.efficiency import Efficiency
from mortice.cost.profile_table import ProfileTable, read_profile
from mortice.plan.answer import Assumed
from mortice.specs.errors import NotFound, RequestError
from mortice.specs.hardware import HardwareSpec

WHEEL = "aiconfigurator:"


class Measured:
    """Calibrations by hardware."""

    def __init__(self, calibrations: Iterable[Calibration] = ()) -> None:
        self._of = {each.hardware.name: each for each in calibrations}

    def kernels(
        self, device: HardwareSpec, *, shares: Efficiency | None = None, framework: str = ""
    ) -> Kernels:
        """Kernels of the device. Measurements correct the hardware's own shares, so with other `shares` (fused kernels)
        they say nothing and are left out."""
        calibration = self._of.get(device.name) if shares is None else None
        return Kernels(device, calibration, shares=shares, framework=framework)

    def notes(self, devices: Iterable[HardwareSpec]) -> tuple[str, ...]:
        """That some of the compared devices are measured and others are not, if so."""
        names = list(dict.fromkeys(device.name for device in devices))
        known = [name for name in names if name in self._of]
        if not known or len(known) == len(names):
            return ()
        others = [name for name in names if name not in known]
        return (
            f"{', '.join(known)} is priced with measured kernels, {', '.join(others)} with modelled ones; "
            "--profile none compares models alone",
        )

    def assumed(self, devices: Iterable[HardwareSpec]) -> tuple[Assumed, ...]:
        """What the kernels of the devices rest on."""
        return tuple(
            Assumed(a.name, a.value, a.why)
            for device in {d.name: d for d in devices}.values()
            for a in self.kernels(device).assumptions()
        )


MODELLED = Measured()


def read_measured(sources: Sequence[str] | None, devices: Iterable[HardwareSpec]) -> Measured:
    """From `--profile`: nothing takes what ships, `none` nothing at all; else profile files (`mortice plan profile`) and
    `aiconfigurator:FRAMEWORK` for the installed wheel, each for the devices it is of.

    Raises RequestError for a file that is of none of the devices, or for a wheel without tables of any of them.
    """
    chosen = {device.name: device for device in devices}
    if sources == ["none"]:
        return MODELLED
    tables: list[ProfileTable] = []
    for source in sources or ():
        if source == "none":
            raise RequestError("--profile none stands alone: it turns every profile off", param="--profile")
        found = _tables(source, chosen)
        if not found:
            raise RequestError(
                f"--profile {source} is of none of the hardware here ({', '.join(chosen)})", param="--profile"
            )
        tables += found
    calibrations = []
    for name, device in chosen.items():
        mine = [table for table in tables if table.hardware == name]
        calibration = calibrate(mine, device) if mine else shipped_calibration(device)
        if mine and calibration is not None and not calibration.covers:
            dropped = {
                why for report in calibration.reports for why, count in report.dropped.items() if count
            }
            raise RequestError(
                f"--profile: no operator of {name} has two usable rows (dropped: {', '.join(sorted(dropped)) or 'none'})",
                param="--profile",
            )
        if calibration is not None:
            calibrations.append(calibration)
    return Measured(calibrations)


def _tables(source: str, devices: dict[str, HardwareSpec]) -> list[ProfileTable]:
    if not source.startswith(WHEEL):
        return [table for table in read_profile(Path(source)) if table.hardware in devices]
    framework = source.removeprefix(WHEEL)
    if framework not in FRAMEWORKS:
        raise RequestError(
            f"--profile {WHEEL}{framework}: the wheel has {', '.join(FRAMEWORKS)}", param="--profile"
        )
    tables: list[ProfileTable] = []
    reason: NotFound | None = None
    for name in devices:
        try:
            tables += import_tables(name, framework, None)
        except NotFound as error:
            reason = error
    if not tables and reason is not None:
        raise reason
    return tables
