"""The pruning methods, one file each; a method's file is imported when the method is first used."""

from __future__ import annotations

import difflib
import importlib
from typing import TYPE_CHECKING

from pdp.errors import Refusal
from pdp.keywords import check_kinds, check_names, option_names, refuse_beside
from pdp.methods.checks import check_options, check_pattern, check_saliency
from pdp.methods.options import OPTIONS, MethodOptions
from pdp.patterns.options import PATTERNS

if TYPE_CHECKING:
    from pdp.methods.method import Method
    from pdp.patterns.pattern import Pattern

# A module called str would hide the built-in str in this package.
_MODULES = {"str": "soft_threshold"}


def make_method(method: str | MethodOptions, pattern: Pattern, **options: object) -> Method:
    """The method with that name and these options; raises `Refusal` for an unknown name or option."""
    if isinstance(method, MethodOptions):
        refuse_beside(method, options)
    else:
        if method not in OPTIONS:
            near = difflib.get_close_matches(str(method), OPTIONS, 1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise Refusal(f"method={method} is unknown: choose one of {', '.join(OPTIONS)}{hint}")
        of_patterns = [name for kind in PATTERNS.values() for name in option_names(kind)]
        known = option_names(OPTIONS[method])
        check_names(f"method={method}", options, known, {"pattern_options": of_patterns})
        method = OPTIONS[method](**options)  # type: ignore[arg-type]
    check_kinds(method, "method")
    check_options(method)
    check_pattern(method, pattern.name)
    check_saliency(method.name, getattr(pattern.options, "saliency", ""))
    module = _MODULES.get(method.name, method.name)
    return importlib.import_module(f"pdp.methods.{module}").Method(method, pattern)
