"""Old names of targets: each has a new one, is translated where an earlier run is resumed, and refused in a new run."""

from __future__ import annotations

import re

import pytest
from conftest import configured
from old_targets import OLD_TARGETS, with_old_targets

from gkd_rl.config.moved_targets import MOVED_MODULES, moved_target, with_current_targets
from gkd_rl.config.validation import validate
from gkd_rl.errors import ConfigError
from gkd_rl.run import find_config_dir
from reward_models.targets import is_defined


def test_every_old_target_has_a_new_one_that_the_configuration_names() -> None:
    conf = "\n".join(path.read_text(encoding="utf-8") for path in sorted(find_config_dir().rglob("*.yaml")))
    named = set(re.findall(r"_target_: *((?:gkd_rl|reward_models)\S+)", conf))
    for old in OLD_TARGETS:
        new = moved_target(old)
        assert new in named and is_defined(str(new)) and not is_defined(old), old
        assert moved_target(str(new)) is None
    assert {old.rpartition(".")[0] for old in OLD_TARGETS} == MOVED_MODULES.keys()


def test_names_are_replaced_as_a_whole() -> None:
    text = "a: {_target_: reward_models.rouge.Rouge, n: 2}\nb: [gkd_rl.tasks.xsum.Xsum, gkd_rl.tasks.Xsum]"
    new = "a: {_target_: reward_models.text.overlap.Rouge, n: 2}\nb: [gkd_rl.data.tasks.xsum.Xsum, gkd_rl.tasks.Xsum]"
    assert with_current_targets(text) == with_current_targets(new) == new
    assert with_old_targets(new) == text
    for other in (
        "mine.gkd_rl.tasks.xsum.Xsum",
        "gkd_rl.tasks.xsum.Xsum.examples",
        "gkd_rl.tasks.xsum",
        "",
        "os.system",
    ):
        assert with_current_targets(other) == other


@pytest.mark.parametrize(
    ("key", "old", "new"),
    [
        ("task._target_", "gkd_rl.tasks.xsum.Xsum", "gkd_rl.data.tasks.xsum.Xsum"),
        (
            "reward.components.all_supported._target_",
            "reward_models.checked.Checked",
            "reward_models.text.answers.Checked",
        ),
        (
            "reward.components.all_supported.checker._target_",
            "gkd_rl.embedded.checker.NewsChecker",
            "gkd_rl.data.embedded.news.NewsChecker",
        ),
    ],
)
def test_a_new_run_has_to_type_the_new_name(key: str, old: str, new: str) -> None:
    with pytest.raises(ConfigError) as caught:
        validate(configured(f"{key}={old}"))
    assert caught.value.problems == [f"{key}={old} has moved: type {key}={new}."]
    validate(configured(f"{key}={new}"))
