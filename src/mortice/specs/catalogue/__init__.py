"""Hardware, racks and models that ship as data, and the user's own files of the same form.

Owns the files beside it and the look-up by name or path; what the fields mean is in specs/hardware.py and
specs/shape.py.
"""

from mortice.specs.catalogue.load import (
    hardware_names,
    load_hardware,
    load_model,
    load_rack,
    model_names,
    published_tables,
    rack_names,
)

__all__ = [
    "hardware_names",
    "load_hardware",
    "load_model",
    "load_rack",
    "model_names",
    "published_tables",
    "rack_names",
]
