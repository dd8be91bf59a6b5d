"""Rules of the values that keys may have, and what a broken one says."""

import math
import re
from collections.abc import Callable, Collection, Iterable, Iterator
from typing import Any, NamedTuple

from detectron2.config import CfgNode

from retina_plugin.config.io import flatten, get_cfg
from retina_plugin.core.errors import ConfigError
from retina_plugin.core.plain import is_number
from retina_plugin.core.text import did_you_mean

_MAY_BE_NULL = re.compile(r"\.(FOCAL_LOSS_ALPHA|NORM)$")  # which then have none


class Rule(NamedTuple):
    """Which values a key may have.

    Attributes:
        allows: whether a value is one of them.
        text: what follows "KEY is VALUE, " in the message.
        names: the values, for a hint at the closest one.
    """

    allows: Callable[[Any], bool]
    text: str
    names: Collection[str] = ()


class Row(NamedTuple):
    """A line of the table.

    Attributes:
        key: "SECTION.KEY"; a version of Detectron2 without it is not checked.
        rule: its values.
        when: whether the configuration reads the key.
        read_by: the method of ``DefaultTrainer`` that alone reads the key; one of a project may allow other values.
    """

    key: str
    rule: Rule
    when: Callable[[CfgNode], bool] = lambda cfg: True
    read_by: str = ""


def value_problems(cfg: CfgNode, rows: Iterable[Row], replaced: Collection[str] = ()) -> Iterator[str]:
    """Yield a line for each key whose value is not allowed.

    Args:
        cfg: a configuration.
        rows: the part of the table to check.
        replaced: names of methods of ``DefaultTrainer`` that the trainer of a project overrides.
    """
    values = dict(flatten(cfg))
    for key, rule, when, read_by in rows:
        if key not in values or read_by in replaced or not when(cfg) or rule.allows(values[key]):
            continue
        value, hint = values[key], did_you_mean(str(values[key]), rule.names) if rule.names else ""
        shown = f"'{value}'" if isinstance(value, str) else value
        yield f"{key} is {shown}, {rule.text}{hint}"


def require_values(cfg: CfgNode) -> None:
    """Raise ``ConfigError``, with a line each, for keys that are null and have a value by default.

    yacs accepts null for every key; no other check does.
    """
    values = dict(flatten(cfg))
    null = [key for key, value in flatten(get_cfg()) if value is not None and values.get(key, value) is None]
    if problems := [f"{key} is null: give it a value, or leave it out" for key in null if not _MAY_BE_NULL.search(key)]:
        raise ConfigError(problems)


def is_integer(value: Any, least: float = -math.inf) -> bool:
    """Whether a value is an integer from ``least`` on."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def is_positive(value: Any) -> bool:
    """Whether a value is a finite number above 0."""
    return is_number(value) and value > 0


def is_list(value: Any, of: Callable[[Any], bool]) -> bool:
    """Whether a value is a list that is not empty, with elements that ``of`` accepts."""
    return isinstance(value, (list, tuple)) and len(value) > 0 and all(map(of, value))


# Each makes a rule; ``what`` is what the key is, in the message.


def integer(what: str, least: int = 0) -> Rule:
    """Return the rule of integers from ``least`` on."""
    return Rule(lambda value: is_integer(value, least), f"but it is {what}: at least {least}")


def number(what: str, least: float = 0) -> Rule:
    """Return the rule of finite numbers from ``least`` on."""
    return Rule(lambda value: is_number(value) and value >= least, f"but it is {what}: finite, at least {least}")


def fraction(what: str) -> Rule:
    """Return the rule of numbers from 0 to 1."""
    return Rule(lambda value: is_number(value) and 0 <= value <= 1, f"but it is {what}: from 0 to 1")


def one_of(*names: str) -> Rule:
    """Return the rule of a few names."""
    return Rule(lambda value: value in names, f"which is none of {', '.join(names)}.", names)


def list_of(of: Callable[[Any], bool], what: str) -> Rule:
    """Return the rule of lists that are not empty, with elements that ``of`` accepts."""
    return Rule(lambda value: is_list(value, of), f"but it is {what}")


def optional(rule: Rule) -> Rule:
    """Return a rule that allows null as well."""
    return rule._replace(allows=lambda value: value is None or rule.allows(value))
