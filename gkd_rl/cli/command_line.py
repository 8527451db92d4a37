"""Code that Hydra's own settings name: launchers, sweepers, callbacks and the classes of a log.

Hydra calls these before a run begins, so that an experiment file of somebody else could run anything by them.

Composes the command line before Hydra runs it, so that a mistake costs a second and leaves no folder.

Hydra makes the run's folder before it calls our function, stops at the first mistake and advises `+key`, which walks
past the schema. Here every override is looked at, every job of a sweep is composed and validated, and what is wrong is
said in this project's own words, all of it at once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path

import yaml
from hydra import compose, initialize_config_dir
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra._internal.utils import get_args_parser
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException, MissingConfigException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, MissingMandatoryValue, OmegaConfBaseException

from gkd_rl.cli.sweeps import directions, ends, missing_plugins
from gkd_rl.config import Config
from gkd_rl.config.validation import describe_setting, not_a_setting, validate
from gkd_rl.errors import ConfigError
from reward_models.targets import find_targets, is_defined

PACKAGES = ("hydra", "hydra_plugins", "gkd_rl", "logging", "colorlog", "optuna")
PLACES = ("callbacks", "launcher", "sweeper", "job_logging", "hydra_logging")
STREAMS = ("ext://sys.stdout", "ext://sys.stderr")


def untrusted_targets(node: DictConfig, configs: Sequence[Config]) -> Iterator[str]:
    """One sentence for each setting under `hydra` that names code of another package, or anything by `ext://`.

    Args:
        node: Hydra's own settings.
        configs: the jobs, whose `trusted_packages` are taken too.
    """
    trusted = {package for config in configs for package in config.trusted_packages}
    for place in PLACES:
        settings = OmegaConf.to_container(node[place], resolve=False) if node.get(place) is not None else {}
        for key, target in find_targets(settings, f"hydra.{place}", ("_target_", "class", "()")):
            package = str(target).split(".")[0]
            if package not in trusted and not (package in PACKAGES and (_absent(target) or is_defined(str(target)))):
                yield (
                    f"{key}={target} names code that is not taken from settings: it takes a class of "
                    f"{', '.join(PACKAGES)}, or of a package that trusted_packages names."
                )
        yield from _external(settings, f"hydra.{place}")


def _absent(target: str) -> bool:
    """A plugin of Hydra that is not installed is told elsewhere, with what to install."""
    parts = str(target).split(".")
    if parts[0] != "hydra_plugins" or len(parts) < 3:
        return False
    return find_spec(parts[0]) is None or find_spec(".".join(parts[:2])) is None


def _external(node: object, key: str) -> Iterator[str]:
    """Texts that the configuration of a log takes for names of objects."""
    for name, child in node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ():
        if isinstance(child, str) and child.startswith("ext://") and child not in STREAMS:
            yield f"{key}.{name}={child} is refused: it takes {' or '.join(STREAMS)}."
        yield from _external(child, f"{key}.{name}")


REFUSALS = (HydraException, OmegaConfBaseException, yaml.YAMLError, ValueError, TypeError)


def check_command_line(config_dir: Path, arguments: list[str]) -> list[Config]:
    """Compose and validate every job that `arguments` ask for.

    Args:
        config_dir: the absolute folder of `config.yaml`.
        arguments: the command line without the program's name.

    Returns:
        The jobs; none where `arguments` ask for help.

    Raises:
        ConfigError: with every problem of every job.
    """
    options = get_args_parser().parse_args(arguments)
    if options.experimental_rerun:
        raise ConfigError(
            ["--experimental-rerun is refused: it reads a pickle, which can run any code. Type the settings."]
        )
    if options.help or options.hydra_help or options.shell_completion:
        return []
    overrides = list(options.overrides)
    if options.config_dir:  # the user's own experiments, beside ours
        if not Path(options.config_dir).is_dir():
            raise ConfigError([f"--config-dir {options.config_dir}: there is no such folder."])
        overrides.append(f"hydra.searchpath=['file://{Path(options.config_dir).absolute()}']")
    folder = str(Path(options.config_path).absolute() if options.config_path else config_dir)
    name = options.config_name or "config"
    with initialize_config_dir(folder, version_base="1.3"):
        problems = [_malformed(text) for text in overrides if _parse(text) is None]
        parsed = [override for override in map(_parse, overrides) if override is not None]
        node = _hydra_node(name, parsed)
        if options.multirun or (node is not None and node.mode is RunMode.MULTIRUN):
            jobs = _jobs(parsed, node)
            problems += [] if node is None else missing_plugins(node)
        else:
            jobs = [_first_job(parsed)]
            problems += [_sweep_in_one_run(override) for override in parsed if override.is_sweep_override()]
        configs = []
        for job in jobs:
            config, found = _examined(name, job)
            configs += [] if config is None else [config]
            problems += found
        problems += [] if node is None else [*directions(node, configs), *untrusted_targets(node, configs)]
    if problems:
        raise ConfigError(list(dict.fromkeys(problems)))
    return configs


def _parse(text: str) -> Override | None:
    """One override, or None where Hydra cannot read it."""
    try:
        override = OverridesParser.create().parse_override(text)
    except HydraException:
        return None
    return override if override.key_or_group else None


def _malformed(text: str) -> str:
    """The sentence for an override that is no KEY=VALUE."""
    key = text.partition("=")[0].lstrip("+~")
    allowed = describe_setting(key)
    takes = f" {key} takes {allowed}." if allowed else ""
    return (
        f"{text} cannot be read: an override is KEY=VALUE without spaces, e.g. alpha=0.5, "
        f"and a value with commas, brackets or spaces stands in quotes.{takes}"
    )


def _first_job(parsed: list[Override]) -> list[str]:
    """The overrides with the first value of each sweep."""
    job = []
    for override in parsed:
        if not override.is_sweep_override():
            job.append(str(override.input_line))
        elif override.is_discrete_sweep():
            job.append(f"{override.get_key_element()}={next(iter(override.sweep_string_iterator()))}")
    return job


def _hydra_node(name: str, parsed: list[Override]) -> DictConfig | None:
    """Hydra's own settings for this command line, or None where it does not compose."""
    try:
        return compose(name, _first_job(parsed), return_hydra_config=True).hydra
    except REFUSALS:
        return None


def _jobs(parsed: list[Override], node: DictConfig | None) -> list[list[str]]:
    """The overrides of every job of a sweep; the ends of what a sweeper searches."""
    params = (node.sweeper.params or {}) if node is not None else {}
    swept = [_parse(f"{key}={value}") for key, value in params.items()] + parsed  # the command line wins
    hydra = [str(one.input_line) for one in parsed if one.is_hydra_override()]
    own = [one for one in swept if one is not None and not one.is_hydra_override()]
    if node is not None and not node.sweeper._target_.endswith(".BasicSweeper"):
        return [hydra + job for job in ends(own)]
    finite = [one for one in own if one.is_discrete_sweep() or not one.is_sweep_override()]
    return [hydra + job for job in BasicSweeper.split_arguments(finite, None)[0]]


def _sweep_in_one_run(override: Override) -> str:
    """The sentence for several values in a command that starts one run."""
    key = override.key_or_group
    return (
        f"{override.input_line} lists several values, and this command starts one run: put -m before the overrides "
        f"for one run of each, or give one value ({key} takes {_describe_key(key)})."
    )


def _describe_key(key: str) -> str:
    """What a key takes: a group's options, or the schema's description."""
    options = _group_options(key)
    return f"one of {', '.join(options)}" if options else describe_setting(key) or "one value"


def _group_options(group: str) -> list[str]:
    """Names of the files in a config group; empty where there is no such group."""
    return GlobalHydra.instance().config_loader().get_group_options(group)


def _examined(name: str, job: list[str]) -> tuple[Config | None, list[str]]:
    """One job and all that is wrong with it: overrides that do not compose, then what `validate` says of the rest."""
    try:
        composed, problems = compose(name, job), []
    except REFUSALS:
        composed, problems = _compose_one_by_one(name, job)
    problems += _sizes(composed)
    try:
        config = OmegaConf.to_object(composed)
        assert isinstance(config, Config)
        validate(config)
        return config, problems
    except ConfigError as error:
        problems += error.problems
    except MissingMandatoryValue as error:
        problems.append(f"{error.full_key} has no value: it takes {describe_setting(str(error.full_key))}.")
    except OmegaConfBaseException as error:
        problems += [] if problems else [f"{error.full_key}: {_first_line(error)}."]
    return None, problems


def _sizes(config: DictConfig) -> list[str]:
    """A size that the scale's table does not have: settings refer to its row."""
    size, scale = config.scale.size, config.scale.name
    if size is None or size in config.scale.sizes:
        return []
    sizes = [name for name, row in config.scale.sizes.items() if "learning_rate" in row]
    return [f"scale.size={size} is not a choice: at scale={scale} it takes {', '.join(sizes) or 'null'}."]


def _compose_one_by_one(name: str, job: list[str]) -> tuple[DictConfig, list[str]]:
    """Add one override at a time, groups first, and leave out those that are refused.

    Raises:
        ConfigError: when the files do not compose without any override.
    """
    try:
        config = compose(name)
    except REFUSALS as error:
        raise ConfigError([f"{name}.yaml does not compose: {error}"]) from error
    accepted: list[str] = []
    problems = []
    for text in sorted(job, key=_turn):
        try:
            config = compose(name, [*accepted, text])
            accepted.append(text)
        except REFUSALS as error:
            problems.append(_explain(text, error, config))
    return config, problems


def _turn(text: str) -> int:
    """Hydra's settings (search path) come before groups, and groups before the settings in them."""
    key = text.partition("=")[0].lstrip("+~")
    return 0 if key.startswith("hydra.") else 1 if _group_options(key) else 2


def _explain(text: str, error: Exception, config: DictConfig) -> str:
    """One refused override in one sentence: key, value, what is allowed, what to type instead."""
    key, _, value = text.lstrip("+~").partition("=")
    options = _group_options(key)
    chain = list(_chain(error))
    groups = [one for one in GlobalHydra.instance().config_loader().list_groups("") if one != "hydra"]
    known = [*_flatten(OmegaConf.to_container(config)), *groups]
    if key == "accelerate":  # a folder of conf/, but not for Hydra
        command = "accelerate launch --config_file conf/accelerate/ddp.yaml -m gkd_rl.run"
        return f"{text} is not a setting of a run but how its processes are started: {command} ..."
    if isinstance(error, MissingConfigException):
        choices = ", ".join(error.options or options)
        if str(error.missing_cfg_file).startswith("preset/"):
            return _no_preset(text, config)
        if error.missing_cfg_file == f"{key}/{value}":
            return f"{text} is not a choice: {key} takes one of {choices}."
        return f"{text}: there is no {error.missing_cfg_file}; the choices are {choices}."
    if isinstance(error, yaml.YAMLError):  # the whole message: it says where
        return f"{text} is not readable YAML: {' '.join(str(error).split())}."
    if text.startswith("+") and (options or key in known):
        return f"{text} is refused: {key} is there already. Type {key}={value}."
    if options and not isinstance(error, HydraException):  # a group that was given no name
        return f"{text} is not a choice: {key} takes one of {', '.join(options)}."
    for cause in chain:
        full_key = getattr(cause, "full_key", None)
        if full_key == key and isinstance(cause, (ConfigAttributeError, ConfigKeyError)):
            return not_a_setting(key, value, known)
        if full_key == key and describe_setting(key):
            return f"{text} is not allowed: {key} takes {describe_setting(key)}."
        if full_key:  # inside the file that a group's name stands for
            allowed = describe_setting(full_key)
            return f"{text}: {_first_line(cause)}. {full_key} " + (
                f"takes {allowed}." if allowed else "is not a setting."
            )
    return f"{text} is refused: {_first_line(error)}."


def _no_preset(text: str, config: DictConfig) -> str:
    """The sentence for a task at a scale that no file describes."""
    key, _, value = text.lstrip("+~").partition("=")
    pairs = [(scale, task) for scale in _group_options("scale") for task in _group_options(f"preset/{scale}")]
    presets = ", ".join(f"{scale}/{task}" for scale, task in pairs)
    if key == "task" and value in _group_options("task"):
        scales = [f"scale={scale}" for scale, task in pairs if task == value]
        instead = [*scales, "preset= with what another task takes"]
        return f"{text} does not go with scale={config.scale.name}: add {' or '.join(instead)} ({presets})."
    if key == "scale" and value in _group_options("scale"):
        tasks = ", ".join(task for scale, task in pairs if scale == value)
        return f"{text} does not go with this task: it takes task={tasks}, or preset= with one of {presets}."
    return f"{text} is not a choice: preset takes one of {presets}."


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """An exception and what caused it."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _first_line(error: BaseException) -> str:
    """The first line of a message; the others are Hydra's advice and search paths."""
    return (str(error) or type(error).__name__).splitlines()[0].rstrip(".")


def _flatten(node: object, prefix: str = "") -> Iterator[str]:
    """Every dotted key of a plain container."""
    if isinstance(node, dict):
        for name, child in node.items():
            yield f"{prefix}{name}"
            yield from _flatten(child, f"{prefix}{name}.")
