"""The command line, composed and checked before Hydra runs it: a mistake ends in seconds and leaves no folder.

Hydra makes the run's folder before it calls our function, stops at the first mistake and suggests `+key`, which adds
keys beside the schema. Here every override is checked, every job of a sweep is composed and validated, and all problems
are reported at once, each with the key, the value, what is allowed and what to type instead.

Settings under `hydra` name code too (launchers, sweepers, callbacks, classes of the log), which Hydra calls before a
run begins. An experiment file from somebody else could run anything through them; only trusted targets are accepted.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path

import yaml
from hydra import compose, initialize_config_dir
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra._internal.utils import get_args_parser
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException, MissingConfigException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, MissingMandatoryValue, OmegaConfBaseException

from gkd_rl.cli.sweeps import missing_plugins, search_bounds, wrong_directions
from gkd_rl.config import Config
from gkd_rl.config.moved_targets import moved_target
from gkd_rl.config.validation import describe_setting, not_a_setting, validate
from gkd_rl.errors import ConfigError
from reward_models.targets import find_targets, is_defined

_COMPOSITION_ERRORS = (HydraException, OmegaConfBaseException, yaml.YAMLError, ValueError, TypeError)


def register_schema() -> None:
    """Store the schema where Hydra looks it up (`defaults: [schema]` in conf/config.yaml).

    Hydra copies its whole store, schema included, at each look-up of a group (172 times for --help), and reads the copy
    only. A store that is its own copy gives the same configurations; --help then takes a third of the time.
    """
    ConfigStore.__deepcopy__ = lambda self, memo: self  # pyright: ignore[reportAttributeAccessIssue]
    ConfigStore.instance().store(name="schema", node=Config)


def check_command_line(config_dir: Path, arguments: list[str]) -> list[Config]:
    """Compose and validate every job of the command line.

    Args:
        config_dir: the absolute folder of `config.yaml`.
        arguments: the command line without the program's name.

    Returns:
        The configurations of the jobs; none if `arguments` ask for help.

    Raises:
        ConfigError: with every problem of every job.
    """
    options = get_args_parser().parse_args(arguments)
    if options.experimental_rerun:
        raise ConfigError(
            ["--experimental-rerun is refused: it loads a pickle, which can run any code. Type the settings."]
        )
    if options.help or options.hydra_help or options.shell_completion:
        return []
    overrides = list(options.overrides)
    if options.config_dir:  # the user's own files, searched before ours
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
            config, found = _compose_and_validate(name, job)
            configs += [] if config is None else [config]
            problems += found
        problems += [] if node is None else [*wrong_directions(node, configs), *_untrusted_targets(node, configs)]
    if problems:
        raise ConfigError(list(dict.fromkeys(problems)))
    return configs


# --- overrides and jobs ----------------------------------------------------------------------------------------------


def _parse(text: str) -> Override | None:
    """One override, or None if Hydra cannot parse it."""
    try:
        override = OverridesParser.create().parse_override(text)
    except HydraException:
        return None
    return override if override.key_or_group else None


def _malformed(text: str) -> str:
    """The message for an override that is not KEY=VALUE."""
    key = text.partition("=")[0].lstrip("+~")
    allowed = describe_setting(key)
    takes = f" {key} takes {allowed}." if allowed else ""
    return (
        f"{text} cannot be parsed: an override is KEY=VALUE without spaces, e.g. alpha=0.5, "
        f"and a value with commas, brackets or spaces is quoted.{takes}"
    )


def _hydra_node(name: str, parsed: list[Override]) -> DictConfig | None:
    """Hydra's own settings for this command line, or None if it does not compose."""
    try:
        return compose(name, _first_job(parsed), return_hydra_config=True).hydra
    except _COMPOSITION_ERRORS:
        return None


def _first_job(parsed: list[Override]) -> list[str]:
    """The overrides with the first value of each sweep."""
    job = []
    for override in parsed:
        if not override.is_sweep_override():
            job.append(str(override.input_line))
        elif override.is_discrete_sweep():
            job.append(f"{override.get_key_element()}={next(iter(override.sweep_string_iterator()))}")
    return job


def _jobs(parsed: list[Override], node: DictConfig | None) -> list[list[str]]:
    """The overrides of every job of a grid; of a search, those of two jobs at its bounds."""
    params = (node.sweeper.params or {}) if node is not None else {}
    swept = [
        _parse(f"{key}={value}") for key, value in params.items()
    ] + parsed  # the command line comes last and overrides
    hydra = [str(one.input_line) for one in parsed if one.is_hydra_override()]
    own = [one for one in swept if one is not None and not one.is_hydra_override()]
    if node is not None and not node.sweeper._target_.endswith(".BasicSweeper"):
        return [hydra + job for job in search_bounds(own)]
    finite = [one for one in own if one.is_discrete_sweep() or not one.is_sweep_override()]
    return [hydra + job for job in BasicSweeper.split_arguments(finite, None)[0]]


def _sweep_in_one_run(override: Override) -> str:
    """The message for several values in a command that starts one run."""
    key = override.key_or_group
    return (
        f"{override.input_line} lists several values, and this command starts one run: put -m before the overrides "
        f"for one run of each, or give one value ({key} takes {_describe_key(key)})."
    )


# --- composition of one job ------------------------------------------------------------------------------------------


def _compose_and_validate(name: str, job: list[str]) -> tuple[Config | None, list[str]]:
    """Configuration of one job, and its problems: overrides that do not compose, then what `validate` finds."""
    try:
        composed, problems = compose(name, job), []
    except _COMPOSITION_ERRORS:
        composed, problems = _compose_one_by_one(name, job)
    problems += _unknown_size(composed)
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


def _compose_one_by_one(name: str, job: list[str]) -> tuple[DictConfig, list[str]]:
    """Compose one override at a time, groups first, without those that fail.

    Raises:
        ConfigError: when the files do not compose without any override.
    """
    try:
        config = compose(name)
    except _COMPOSITION_ERRORS as error:
        raise ConfigError([f"{name}.yaml does not compose: {error}"]) from error
    accepted: list[str] = []
    problems = []
    for text in sorted(job, key=_order):
        try:
            config = compose(name, [*accepted, text])
            accepted.append(text)
        except _COMPOSITION_ERRORS as error:
            problems.append(_explain(text, error, config))
    return config, problems


def _order(text: str) -> int:
    """Sort key: Hydra's settings (search path) come before groups, and groups before the settings in them."""
    key = text.partition("=")[0].lstrip("+~")
    return 0 if key.startswith("hydra.") else 1 if _group_options(key) else 2


def _unknown_size(config: DictConfig) -> list[str]:
    """A size that is not in the scale's table, to whose row settings refer."""
    size, scale = config.scale.size, config.scale.name
    if size is None or size in config.scale.sizes:
        return []
    sizes = [name for name, row in config.scale.sizes.items() if "learning_rate" in row]
    return [f"scale.size={size} is not a choice: at scale={scale} it takes {', '.join(sizes) or 'null'}."]


# --- messages about one override -------------------------------------------------------------------------------------


def _explain(text: str, error: Exception, config: DictConfig) -> str:
    """The message for an override that does not compose."""
    key, _, value = text.lstrip("+~").partition("=")
    options = _group_options(key)
    chain = list(_causes(error))
    groups = [one for one in GlobalHydra.instance().config_loader().list_groups("") if one != "hydra"]
    known = [*_flatten(OmegaConf.to_container(config)), *groups]
    if key == "accelerate":  # a folder of conf/ that is not a Hydra group
        command = "accelerate launch --config_file conf/accelerate/ddp.yaml -m gkd_rl.run"
        return f"{text} is not a setting of a run; it configures how processes are started: {command} ..."
    if isinstance(error, MissingConfigException):
        choices = ", ".join(error.options or options)
        if str(error.missing_cfg_file).startswith("preset/"):
            return _no_preset(text, config)
        if error.missing_cfg_file == f"{key}/{value}":
            return f"{text} is not a choice: {key} takes one of {choices}."
        return f"{text}: there is no {error.missing_cfg_file}; the choices are {choices}."
    if isinstance(error, yaml.YAMLError):  # the whole message, which has the position
        return f"{text} is not readable YAML: {' '.join(str(error).split())}."
    if text.startswith("+") and (options or key in known):
        return f"{text} is refused: {key} exists already. Type {key}={value}."
    if options and not isinstance(error, HydraException):  # a group that was given no name
        return f"{text} is not a choice: {key} takes one of {', '.join(options)}."
    for cause in chain:
        full_key = getattr(cause, "full_key", None)
        if full_key == key and isinstance(cause, (ConfigAttributeError, ConfigKeyError)):
            return not_a_setting(key, value, known)
        if full_key == key and describe_setting(key):
            return f"{text} is not allowed: {key} takes {describe_setting(key)}."
        if full_key:  # within the file of a group's choice
            allowed = describe_setting(full_key)
            return f"{text}: {_first_line(cause)}. {full_key} " + (
                f"takes {allowed}." if allowed else "is not a setting."
            )
    return f"{text} is refused: {_first_line(error)}."


def _no_preset(text: str, config: DictConfig) -> str:
    """The message for a task and scale without a preset file."""
    key, _, value = text.lstrip("+~").partition("=")
    pairs = [(scale, task) for scale in _group_options("scale") for task in _group_options(f"preset/{scale}")]
    presets = ", ".join(f"{scale}/{task}" for scale, task in pairs)
    if key == "task" and value in _group_options("task"):
        scales = [f"scale={scale}" for scale, task in pairs if task == value]
        instead = [*scales, "preset= with the preset of another task"]
        return f"{text} does not go with scale={config.scale.name}: add {' or '.join(instead)} ({presets})."
    if key == "scale" and value in _group_options("scale"):
        tasks = ", ".join(task for scale, task in pairs if scale == value)
        return f"{text} does not go with this task: it takes task={tasks}, or preset= with one of {presets}."
    return f"{text} is not a choice: preset takes one of {presets}."


def _describe_key(key: str) -> str:
    """What a key takes: the choices of a group, or the schema's description."""
    options = _group_options(key)
    return f"one of {', '.join(options)}" if options else describe_setting(key) or "one value"


def _group_options(group: str) -> list[str]:
    """Choices of a config group; empty if there is no such group."""
    return GlobalHydra.instance().config_loader().get_group_options(group)


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """An exception and its chain of causes."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _first_line(error: BaseException) -> str:
    """The first line of a message, without Hydra's advice and search paths."""
    return (str(error) or type(error).__name__).splitlines()[0].rstrip(".")


def _flatten(node: object, prefix: str = "") -> Iterator[str]:
    """Every dotted key of a plain container."""
    if isinstance(node, dict):
        for name, child in node.items():
            yield f"{prefix}{name}"
            yield from _flatten(child, f"{prefix}{name}.")


# --- trusted targets of Hydra's own settings -------------------------------------------------------------------------

_HYDRA_PACKAGES = ("hydra", "hydra_plugins", "gkd_rl", "logging", "colorlog", "optuna")
_HYDRA_SECTIONS = ("callbacks", "launcher", "sweeper", "job_logging", "hydra_logging")
_STREAMS = ("ext://sys.stdout", "ext://sys.stderr")


def _untrusted_targets(node: DictConfig, configs: Sequence[Config]) -> Iterator[str]:
    """One message for each setting under `hydra` that names code of another package, or an object by `ext://`.

    Args:
        node: Hydra's own settings.
        configs: of the jobs, whose `trusted_packages` are accepted too.
    """
    trusted = {package for config in configs for package in config.trusted_packages}
    for section in _HYDRA_SECTIONS:
        settings = OmegaConf.to_container(node[section], resolve=False) if node.get(section) is not None else {}
        for key, target in find_targets(settings, f"hydra.{section}", ("_target_", "class", "()")):
            moved = moved_target(str(target))
            if moved is not None:
                yield f"{key}={target} has moved: type {key}={moved}."
            elif not _is_trusted(str(target), trusted):
                yield (
                    f"{key}={target} is not a trusted target: it takes a class of "
                    f"{', '.join(_HYDRA_PACKAGES)}, or of a package that trusted_packages names."
                )
        yield from _external_objects(settings, f"hydra.{section}")


def _is_trusted(target: str, trusted: set[str]) -> bool:
    """Whether a dotted name is in a trusted package, or is defined in one that Hydra's own settings may use."""
    package = target.split(".")[0]
    return package in trusted or (package in _HYDRA_PACKAGES and (_is_missing_plugin(target) or is_defined(target)))


def _is_missing_plugin(target: str) -> bool:
    """Whether a target is a plugin of Hydra that is not installed, which `missing_plugins` reports."""
    parts = target.split(".")
    if parts[0] != "hydra_plugins" or len(parts) < 3:
        return False
    return find_spec(parts[0]) is None or find_spec(".".join(parts[:2])) is None


def _external_objects(node: object, key: str) -> Iterator[str]:
    """One message for each `ext://` text, by which the configuration of a log names any object."""
    for name, child in node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ():
        if isinstance(child, str) and child.startswith("ext://") and child not in _STREAMS:
            yield f"{key}.{name}={child} is refused: it takes {' or '.join(_STREAMS)}."
        yield from _external_objects(child, f"{key}.{name}")
