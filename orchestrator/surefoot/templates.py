"""Templates: jinja2 in its sandbox, where a missing value is an error and HTML is escaped."""

from __future__ import annotations

import functools
import os
from typing import TYPE_CHECKING, Any

from .errors import TemplateRefused

if TYPE_CHECKING:
    from jinja2.sandbox import SandboxedEnvironment


@functools.lru_cache(maxsize=64)
def _environment(directory: str) -> SandboxedEnvironment:
    from jinja2 import FileSystemLoader, StrictUndefined
    from jinja2.sandbox import SandboxedEnvironment

    return SandboxedEnvironment(
        loader=FileSystemLoader(directory),
        undefined=StrictUndefined,
        autoescape=_escapes,
        keep_trailing_newline=True,
    )


def _escapes(name: str | None) -> bool:
    stem = (name or "").removesuffix(".j2").removesuffix(".jinja")
    return stem.endswith((".html", ".htm", ".xml", ".svg"))


def check(directory: str, name: str) -> None:
    """Finds and compiles a template.

    Raises:
        TemplateRefused: it is missing or broken.
    """
    _guard(directory, name, lambda: _environment(directory).get_template(name))


def render(directory: str, name: str, values: dict[str, Any]) -> str:
    """The filled-in text.

    Raises:
        TemplateRefused: it is missing, broken, or uses a value that was not given.
    """
    return str(_guard(directory, name, lambda: _environment(directory).get_template(name).render(values)))


def render_text(text: str, values: dict[str, Any]) -> str:
    """A text as a template, filled in.

    Raises:
        TemplateRefused: it is broken, or uses a value that was not given.
    """
    environment = _environment(os.devnull)
    return str(_guard("", "a text", lambda: environment.from_string(text).render(values)))


def _guard(directory: str, name: str, act: Any) -> Any:
    from jinja2 import TemplateError, TemplateNotFound, TemplateSyntaxError, UndefinedError

    where = os.path.join(directory, name)
    try:
        return act()
    except TemplateNotFound as error:
        raise TemplateRefused(
            "render", name, expected=f"a template in {directory}", found=f"no {error.name}"
        ) from error
    except TemplateSyntaxError as error:
        raise TemplateRefused("render", where, found=f"line {error.lineno}: {error.message}") from error
    except UndefinedError as error:
        raise TemplateRefused(
            "render",
            where,
            expected="every value that it uses",
            found=str(error),
            hint="pass it to tx.render",
        ) from error
    except TemplateError as error:
        raise TemplateRefused("render", where, found=f"{type(error).__name__}: {error}") from error
    except UnicodeDecodeError as error:
        raise TemplateRefused("render", where, expected="UTF-8 text", found=str(error)) from error
