"""A check of what MMEngine builds: one sentence for a type or an argument that does not exist.

MMEngine builds models, data sets, hooks, optimizers and all the rest by :meth:`Registry.build` from
a dict: ``type`` names a class, the other keys are its arguments. A wrong type is a KeyError. A
wrong key is a TypeError from somewhere inside, or a class that takes ``**kwargs`` ignores it.
:func:`activate` compares type and keys with what there is before the class is called.
"""

import ast
import inspect
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from difflib import get_close_matches
from functools import cache, wraps
from textwrap import dedent
from typing import Any, NamedTuple

from mmengine.model import weight_init
from mmengine.registry import OPTIMIZERS, PARAM_SCHEDULERS, Registry
from mmengine.registry.build_functions import (
    build_from_cfg,
    build_model_from_cfg,
    build_optimizer_from_cfg,
    build_scheduler_from_cfg,
)

from pera_mm.errors import UserError

STANDARD = (build_from_cfg, build_model_from_cfg, build_optimizer_from_cfg,
            build_scheduler_from_cfg)
OF_MMENGINE = {'type', '_scope_', 'name'}  # taken out before the class is called, or by its base
OF_SCHEDULERS = {'convert_to_iter_based', 'epoch_length', 'by_epoch', 'begin', 'end'}
WRONG_CALL = re.compile(r'\w\(\) (got|missing|takes) ')  # of Python, where a call does not fit
SIMILAR = 0.85  # of an unknown key to a known one, where any key is possible


class Arguments(NamedTuple):
    """What a class or a function takes by name.

    Attributes:
        names: known names.
        more: whether it may take others, by ``**kwargs`` that are not its parent's.
    """

    names: frozenset[str]
    more: bool


def activate() -> None:
    """Check whatever MMEngine's registries build; a second call changes nothing."""
    build = Registry.build
    if hasattr(build, '__wrapped__'):
        return

    @wraps(build)
    def checked_build(self: Registry, cfg: Any, *args: Any, **kwargs: Any) -> Any:
        if self.build_func not in STANDARD or isinstance(cfg, list):
            return build(self, cfg, *args, **kwargs)
        with checked(self, cfg, kwargs.get('default_args') or {}):
            return build(self, cfg, *args, **kwargs)

    def checked_initializer(cfg: Any, registry: Registry, default_args: Any = None) -> Any:
        with checked(registry, cfg, default_args or {}):
            return build_from_cfg(cfg, registry, default_args)

    vars(weight_init)['build_from_cfg'] = checked_initializer
    Registry.build = checked_build


@contextmanager
def checked(registry: Registry, cfg: Any, defaults: Mapping[str, Any]) -> Iterator[None]:
    """Check a config before it is built inside, and what is raised then about arguments.

    Raises:
        ValueError: if it is not a dict with a known type, or has a key that the type does not
            take; for optimizers and schedules, also if a value is refused.
    """
    if not isinstance(cfg, Mapping):
        raise UserError(f'a {registry.name} is a dict with a type in the config, not {cfg!r}.')
    name = cfg.get('type', defaults.get('type'))
    if name is None:
        raise UserError(f'a {registry.name} of the config has no type, only '
                        f'{", ".join(map(str, cfg)) or "nothing at all"}: add it.')
    kind = find(registry, name, cfg.get('_scope_')) if isinstance(name, str) else name
    label = name if isinstance(name, str) else getattr(name, '__name__', repr(name))
    known = OF_MMENGINE | (OF_SCHEDULERS if registry.root is PARAM_SCHEDULERS else set())
    check_keys(kind, cfg.keys() - known, label)
    try:
        yield
    except (TypeError, ValueError, AssertionError) as error:
        refused = registry.root in (OPTIMIZERS, PARAM_SCHEDULERS)
        if refused and not isinstance(error, UserError) or (
                isinstance(error, TypeError) and WRONG_CALL.search(str(error))):
            raise UserError(f'{label} cannot be built from the config: {error}.') from error
        raise


def find(registry: Registry, name: str, scope: str | None = None) -> Any:
    """Find the class or function of a name, as MMEngine does.

    Raises:
        ValueError: if there is none, with the most similar name.
    """
    with registry.switch_scope_and_registry(scope) as place:
        try:
            kind = place.get(name)
        except RuntimeError:  # a name with dots that is not one of Python's
            kind = None
        if kind is None:
            similar = _similar(place, name)
            raise UserError(
                f'there is no {registry.root.name} {name}' + (
                    f'; did you mean {similar}?' if similar else
                    ': check its spelling, and that custom_imports names its module.'))
    return kind


def _similar(registry: Registry, name: str) -> str | None:
    scope, _, key = name.rpartition('.')
    own = [registry]
    while own[-1].parent is not None:
        own.append(own[-1].parent)
    places = [*own, *_below(own[-1])]
    labels: dict[str, str] = {}
    for place in sorted(places, key=lambda place: place.scope != scope):
        for known in place.module_dict:
            labels.setdefault(known, known if not scope and place in own else
                              f'{place.scope}.{known}')
    match = get_close_matches(key, labels, n=1)
    return labels[match[0]] if match else None


def _below(registry: Registry) -> Iterator[Registry]:
    for child in registry.children.values():
        yield child
        yield from _below(child)


def check_keys(kind: Callable, keys: Iterable[str], label: str) -> None:
    """Raise a ValueError that names a key which a class or function does not take.

    Where it may take any key, only one that is similar to a known one is refused.
    """
    names, more = arguments_of(kind)
    for key in sorted(set(keys) - names):
        match = get_close_matches(key, names, n=1, cutoff=SIMILAR if more else 0.5)
        if match or not more:
            raise UserError(f'{label} has no argument {key}' + (
                f'; did you mean {match[0]}?' if match else
                f': it takes {", ".join(sorted(names)) or "none"}.'))


@cache
def arguments_of(kind: Callable) -> Arguments:
    """Look through a class and its parents, as far as each hands ``**kwargs`` on to the next."""
    if not inspect.isclass(kind):
        names, rest = _parameters(kind)
        return Arguments(names - {'self'}, rest is not None)
    names = frozenset()
    for parent in kind.__mro__:
        if '__init__' in vars(parent):
            own, rest = _parameters(vars(parent)['__init__'])
            names |= own
            if rest is None or not _hands_on(vars(parent)['__init__'], rest):
                return Arguments(names - {'self'}, rest is not None)
    return Arguments(names, True)


def _parameters(function: Callable) -> tuple[frozenset[str], str | None]:
    """Return the names of the arguments, and that of the dict of all others."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):  # of a function in C
        return frozenset(), ''
    rest = [parameter.name for parameter in parameters if parameter.kind is parameter.VAR_KEYWORD]
    return (frozenset(parameter.name for parameter in parameters if parameter.kind in (
        parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)), rest[0] if rest else None)


def _hands_on(init: Callable, rest: str) -> bool:
    """Whether ``__init__`` only reads ``**rest`` before ``super().__init__(**rest)``."""
    try:
        tree = ast.parse(dedent(inspect.getsource(init)))
    except (OSError, TypeError, SyntaxError):
        return False
    nodes = list(ast.walk(tree))
    uses = sum(_is_name(node, rest) for node in nodes)
    reads = sum(isinstance(node, ast.Attribute) and node.attr == 'get'
                and _is_name(node.value, rest) for node in nodes)
    handed = sum(_is_name(keyword.value, rest) for node in nodes
                 if isinstance(node, ast.Call) and _is_super_init(node.func)
                 for keyword in node.keywords if keyword.arg is None)
    return uses - reads == handed > 0


def _is_name(node: ast.AST, name: str) -> bool:
    return isinstance(node, ast.Name) and node.id == name


def _is_super_init(function: ast.expr) -> bool:
    return (isinstance(function, ast.Attribute) and function.attr == '__init__'
            and isinstance(function.value, ast.Call) and isinstance(function.value.func, ast.Name)
            and function.value.func.id == 'super')
