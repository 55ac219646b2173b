"""Analyses, one file each: ``python -m igm_fast.analyze`` finds them by the name of their file.

A module is an analysis if it says its ``KIND``; besides, it has ``add_arguments(parser)`` for the options that are its
own and ``run(arguments, console)``, which writes NAME.png and NAME.csv below ``arguments.out`` and returns a
:class:`igm_fast.analyses.finding.Finding`. The first line of its docstring is its help text.
"""

from __future__ import annotations

import importlib
import pkgutil
from types import ModuleType

KINDS = ("run", "runs", "grid")  # looks at one run; at one or several; trains runs of its own


def analyses() -> dict[str, ModuleType]:
    """Return the analyses by name, in alphabetical order; in the files' names a hyphen is an underscore."""
    found = (importlib.import_module(f"{__name__}.{module.name}") for module in pkgutil.iter_modules(__path__))
    modules = {module.__name__.rpartition(".")[2].replace("_", "-"): module for module in found}
    return {name: modules[name] for name in sorted(modules) if hasattr(modules[name], "KIND")}
