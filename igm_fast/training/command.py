"""The command line of training: presets of data set and protocol < ``--config`` file < flags, the same flat keys."""

from __future__ import annotations

import argparse
import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import docstring_parser
import jsonargparse

from igm_fast.data import dataset_names
from igm_fast.methods import METHODS
from igm_fast.methods.base import Method
from igm_fast.names import nearest
from igm_fast.training.config import (
    TrainConfig,
    config_keys,
    epochs_of_stages,
    flat,
    from_flat,
    method_class,
    option_keys,
    preset,
    read_yaml,
)

EXAMPLES = """\
examples:
  python -m igm_fast.train                                        IGM on the data set watch, under a minute
  python -m igm_fast.train --method late --rho 0.05 --data emoji --seed 1 --out runs/late
  python -m igm_fast.train --config my.yaml --lr 0.01             keys of my.yaml, except lr
  python -m igm_fast.train --data crema-d --data_root DIR --print_config
  python -m igm_fast.train --protocol official --mixup none       the authors' settings, except mixup

exit codes: 0 trained, 1 training failed, 2 wrong usage, 130 stopped. A stopped or failed run goes on with --resume.
"""
COMMAND_FLAGS = ("config", "print_config", "help")
HELP_GROUPS = {  # keys of every run
    "what to train": ("method", "data", "protocol", "seed", "out"),
    "data": ("data_root", "skip_bad", "use_target", "validation_by", "cache", "workers"),
    "model": ("width", "encoders", "pretrained", "head_widths"),
    "optimization": (
        *("epochs", "stages", "stage_epochs", "batch_size", "lr", "schedule", "optimizer", "momentum", "betas"),
        "weight_decay",
    ),
    "selection of weights": ("selection", "select_by", "stage_start", "keep_stages"),
    "machine": ("accelerator", "devices", "strategy", "precision", "threads"),
    "the command itself": ("resume", "overwrite", "quiet"),
}


class UsageError(ValueError):
    """The command line cannot be understood; the message says what was given and what is expected."""


class HelpAsked(Exception):  # noqa: N818 - a question, not an error
    """``--help`` was given; the answer is ``args[0]``."""


@dataclass(frozen=True)
class Command:
    """What to do: settings as flat keys, and the two objects made from them."""

    settings: dict[str, Any]
    config: TrainConfig
    method: Method
    print_config: bool


def parse(argv: Sequence[str]) -> Command:
    """Return what a command line asks for.

    Raises:
        UsageError: an unknown or misspelt key, method or data set, a value of the wrong type.
        ValueError: a value out of range.
        FileNotFoundError: the ``--config`` file is missing.
        HelpAsked: ``--help`` was given.
    """
    flags = scan(argv)
    given = _settings(flags)
    method, data = str(given.get("method", TrainConfig.method)), str(given.get("data", TrainConfig.data))
    if data not in dataset_names():
        raise UsageError(nearest(data, dataset_names(), "data set"))
    cls = method_class(method)
    _check_keys(cls, given)
    # A preset speaks for all methods: what this one has no use for does not concern it.
    known = preset(data, str(given.get("protocol", TrainConfig.protocol)))
    if "epochs" in given:
        known.pop("stage_epochs", None)  # another division of epochs that are not asked for
    defaults = {key: value for key, value in known.items() if key in [*config_keys(), *option_keys(cls)]}
    parser = build_parser(cls, {**defaults, "method": method, "data": data})
    if "help" in flags:
        raise HelpAsked(parser.format_help())
    try:
        parsed = parser.parse_args([f"--{key}={_as_flag(value)}" for key, value in given.items()])
    except argparse.ArgumentError as error:
        raise UsageError(_plain(str(error))) from error
    settings = {key: parsed[key] for key in [*config_keys(), *option_keys(cls)]}
    if settings["stage_epochs"] and "epochs" not in given:
        settings["epochs"] = epochs_of_stages(settings["stage_epochs"], settings["stages"])
    config, made = from_flat(settings)
    if config.out is None:
        modality = f"-{settings['modality']}" if settings.get("modality") else ""
        settings["out"] = f"runs/{method}{modality}-{data}-{config.seed}"
        config, made = from_flat(settings)
    return Command(flat(config, made), config, made, "print_config" in flags)


def build_parser(cls: type[Method], defaults: Mapping[str, Any]) -> jsonargparse.ArgumentParser:
    """Return the parser for one method, with the defaults of the data set's preset."""
    methods = "\n".join(f"  {name:<12}{_documentation(known).short_description}" for name, known in METHODS.items())
    parser = jsonargparse.ArgumentParser(
        prog="python -m igm_fast.train",
        usage="%(prog)s [--method NAME] [--data NAME] [--out FOLDER] [options]",
        description=f"Train one method on one data set and write a run folder with a report.\n\nmethods:\n{methods}\n\n"
        f"data sets: {', '.join(dataset_names())}. `--method NAME --help` shows the options of another method.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        exit_on_error=False,
        default_env=False,
    )
    parser.add_argument("--config", metavar="FILE", help="YAML file with the keys below; flags win over it")
    parser.add_argument("--print_config", action="store_true", help="print all settings as YAML and stop")
    for title, names in HELP_GROUPS.items():
        _add_options(parser, TrainConfig, names, title, defaults)
    _add_options(parser, cls, option_keys(cls), f"method {cls.name}", defaults)
    return parser


def _add_options(
    parser: jsonargparse.ArgumentParser, owner: type, names: Sequence[str], title: str, defaults: Mapping[str, Any]
) -> None:
    """Add arguments of a constructor; their meaning is read from its docstring."""
    group = parser.add_argument_group(title)
    meanings = {parameter.arg_name: parameter.description for parameter in _documentation(owner).params}
    hints, parameters = get_type_hints(owner), inspect.signature(owner).parameters
    for name in names:
        hint, default = hints[name], defaults.get(name, parameters[name].default)
        words = "{" + ",".join(get_args(hint)) + "}" if get_origin(hint) is Literal else name.upper()
        shown = "" if default in (None, "") or hint is bool else f" (default: {default})"
        group.add_argument(
            f"--{name}",
            type=hint,
            default=default,
            metavar="" if hint is bool else words,
            help=" ".join((meanings[name] or "").rstrip(".").split()) + shown,
        )


def _documentation(owner: type) -> docstring_parser.Docstring:
    return docstring_parser.parse(owner.__doc__ or "", docstring_parser.DocstringStyle.GOOGLE)


def scan(argv: Sequence[str]) -> dict[str, str]:
    """Return flags and their values as written; a flag without a value means true.

    Raises:
        UsageError: a word that belongs to no flag.
    """
    flags: dict[str, str] = {}
    words = list(argv)
    while words:
        word = words.pop(0)
        if word == "-h":
            word = "--help"
        if not word.startswith("--") or word == "--":
            raise UsageError(f"unexpected {word!r}; expected options such as --method igm (see --help)")
        key, equals, value = word[2:].partition("=")
        if not equals:
            value = words.pop(0) if words and not words[0].startswith("--") and words[0] != "-h" else "true"
        flags[key.replace("-", "_")] = value
    return flags


def _settings(flags: Mapping[str, str]) -> dict[str, Any]:
    """Return the given keys: those of the run that is resumed, over them the file's, over them the flags."""
    own = {key: value for key, value in flags.items() if key not in COMMAND_FLAGS}
    file = read_yaml(Path(flags["config"])) if "config" in flags else {}
    begun: dict[str, Any] = {}
    out = own.get("out", file.get("out"))
    if own.get("resume", "false") == "true" and out is not None and (Path(out) / "config.yaml").exists():
        begun = read_yaml(Path(out) / "config.yaml") | {"out": out}
    asked = {**file, **own}
    if any(asked.get(key, begun.get(key)) != begun.get(key) for key in ("method", "data")):
        begun = {}  # its options would be another method's; that it is another run is said later
    return {**begun, **asked}


def _check_keys(cls: type[Method], given: Mapping[str, Any]) -> None:
    """Answer unknown keys and words before the parser does, which knows no neighbours."""
    own = option_keys(cls)
    for key in given:
        if key in config_keys() or key in own:
            continue
        others = [name for name, other in METHODS.items() if key in option_keys(other)]
        if others:
            whose = f"{key} is an option of {', '.join(others)}, not of {cls.name}"
            raise UsageError(f"{whose}. Options of {cls.name}: {', '.join(own) or 'none of its own'}")
        raise UsageError(nearest(key, [*config_keys(), *own, *COMMAND_FLAGS], "option"))
    for owner in (TrainConfig, cls):
        for key, hint in get_type_hints(owner).items():
            if get_origin(hint) is Literal and key in given and given[key] not in get_args(hint):
                raise UsageError(nearest(str(given[key]), get_args(hint), key))


def _as_flag(value: Any) -> str:
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else str(value)


def _plain(message: str) -> str:
    """Turn the parser's message into one line."""
    words = " ".join(message.split())
    return (
        words.replace('Parser key "', "--")
        .replace('": Expected a', ": expected a", 1)
        .replace("<class '", "")
        .replace("'>", "")
    )
