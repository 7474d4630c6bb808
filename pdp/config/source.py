"""A model of the user's own by its dotted path: imported as if from the working directory, refused in one line.

Needs no torch itself, although the user's module may import it.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import importlib.util
import inspect
import io
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from pdp.errors import Refusal
from pdp.wording import nearest, one_line

_SHOWN = 10  # names of a module that a message lists
_imported: dict[str, str] = {}  # module name -> sha256 of its file when it was imported here


def is_dotted(text: str) -> bool:
    """Whether the text names something in a module, `module.Name` or `module:Name`, and not a file or web address."""
    parts = text.replace(":", ".").split(".")
    return len(parts) > 1 and all(parts) and not any(sign in text for sign in "/\\")


def dotted(text: str) -> str:
    """`package.module:Name` rewritten as `package.module.Name`."""
    return text.replace(":", ".")


def locate(name: str) -> Any:
    """The class or function with that dotted path; raises `Refusal` if there is none or the import fails."""
    return _find(name)[1]


def source_of(name: str) -> Path | None:
    """The file that defines what `name` refers to; None if there is none, as for a notebook's cell."""
    module, found = _find(name)
    try:
        file = inspect.getsourcefile(inspect.unwrap(found)) if callable(found) else None
    except (TypeError, ValueError):  # for example a partial, or a class created at run time
        file = None
    path = Path(file or getattr(module, "__file__", None) or "")
    return path if path.is_file() else None


def source_digest(name: str) -> str:
    """The sha256 of that file; raises `Refusal` if there is none."""
    path = source_of(name)
    if path is None:
        raise Refusal(
            f"model={name}: its source lies in no file, so a run of it could not be told from another: write it into a "
            "file beside the notebook (%%writefile net.py) and give model=net.<name>"
        )
    return hashlib.sha256(path.read_bytes()).hexdigest()


def names_in(module: Any) -> list[str]:
    """The names of the callables that a module or class defines itself."""
    return sorted(
        name
        for name, value in vars(module).items()
        if not name.startswith("_")
        and callable(value)
        and (not isinstance(module, ModuleType) or getattr(value, "__module__", None) == module.__name__)
    )


def _find(name: str) -> tuple[ModuleType, Any]:
    if not is_dotted(name):
        raise Refusal(f"model.name={name} names nothing in a module: give model=<module>.<class or function>")
    with _working_directory_first():
        _reload_edited()
        module, rest = _import_longest(name)
        found: Any = module
        for part in rest:
            if not hasattr(found, part) and found is module and _is_module(module, f"{module.__name__}.{part}"):
                found = _import(f"{module.__name__}.{part}", name)
                continue
            try:
                found = getattr(found, part)
            except AttributeError:
                raise Refusal(_lacks(name, module, found, part)) from None
    home = getattr(found, "__module__", None)  # the module from which a package re-exports it
    if isinstance(home, str) and home in sys.modules:
        _imported.setdefault(home, _digest(sys.modules[home]))
    return module, found


def _reload_edited() -> None:
    """Re-imports modules edited since their import here, as in a notebook, and modules that take names from them."""
    edited = [one for one, was in _imported.items() if one in sys.modules and _digest(sys.modules[one]) != was]
    roots = {one.split(".")[0] for one in edited}
    for one in sorted(_imported, key=lambda path: -path.count(".")):
        if one.split(".")[0] in roots and one in sys.modules:
            _import(one, one, again=True)


def _import_longest(name: str) -> tuple[ModuleType, list[str]]:
    """The module named by the longest possible prefix of `name`, and the remaining parts."""
    parts = name.split(".")
    module: ModuleType | None = None
    for count in range(1, len(parts)):
        path = ".".join(parts[:count])
        if module is not None and not _is_module(module, path):
            return module, parts[count - 1 :]
        module = _import(path, name)
    assert module is not None
    # The last part may itself be a submodule; it is returned for the message.
    return module, parts[len(parts) - 1 :]


def _is_module(parent: ModuleType, path: str) -> bool:
    if path in sys.modules:
        return True
    try:
        return hasattr(parent, "__path__") and importlib.util.find_spec(path) is not None
    except (ImportError, ValueError, AttributeError):
        return False


def _import(path: str, name: str, again: bool = False) -> ModuleType:
    said = io.StringIO()
    try:
        with _undisturbed(), contextlib.redirect_stderr(said):
            importlib.invalidate_caches()
            module = importlib.reload(sys.modules[path]) if again else importlib.import_module(path)
        sys.stderr.write(said.getvalue())
    except ModuleNotFoundError as error:
        if error.name is not None and (path == error.name or path.startswith(f"{error.name}.")):
            raise Refusal(_no_module(path, name)) from None
        raise Refusal(f"model={name}: {path} needs the module {error.name}, which is not installed") from None
    except SyntaxError as error:
        place = f"{error.filename}, line {error.lineno}" if error.filename else path
        raise Refusal(f"model={name}: {place} is not Python ({error.msg})") from None
    except (Exception, SystemExit) as error:
        reason = f"{type(error).__name__}: {one_line(error)[:160]}" if str(error) else type(error).__name__
        raise Refusal(f"model={name}: {path} cannot be imported: {reason}{_place(error)}") from None
    _imported[path] = _digest(module)
    return module


def _digest(module: ModuleType | None) -> str:
    file = getattr(module, "__file__", None)
    try:
        return hashlib.sha256(Path(file).read_bytes()).hexdigest() if file else ""
    except OSError:
        return ""


def _place(error: BaseException) -> str:
    """Where in the user's files an error occurred: the last line that belongs to no library."""
    trace, place = error.__traceback__, ""
    while trace is not None:
        file = trace.tb_frame.f_code.co_filename
        if file.startswith(os.getcwd()) and file != __file__:
            place = f" ({file}, line {trace.tb_lineno})"
        trace = trace.tb_next
    return place


def _no_module(path: str, name: str) -> str:
    parent, _, last = path.rpartition(".")
    folder = Path.cwd().joinpath(*parent.split(".")) if parent else Path.cwd()
    near = [f"{parent}.{one}".lstrip(".") for one in nearest(last, _modules_in(folder))]
    hint = f"did you mean {' or '.join(near)}? " if near else ""
    return (
        f"model={name}: there is no module {path}, neither in the working directory ({Path.cwd()}) nor installed: "
        f"{hint}give model=<module>.<class or function>; a timm model with a dot in it is model=timm model.name=<name>"
    )


def _modules_in(folder: Path) -> list[str]:
    try:
        entries = list(folder.iterdir())
    except OSError:
        return []
    return [one.stem for one in entries if one.suffix == ".py" or (one.is_dir() and any(one.glob("*.py")))]


def _lacks(name: str, module: ModuleType, owner: Any, part: str) -> str:
    place = getattr(module, "__file__", None)
    where = f"{module.__name__}{f' ({place})' if place else ''}" if owner is module else f"{owner!r}"
    known = names_in(owner) if isinstance(owner, ModuleType | type) else []
    for folder in getattr(owner, "__path__", ()):
        known += [one for one in _modules_in(Path(folder)) if not one.startswith("_")]
    near = nearest(part, known)
    hint = f"did you mean {' or '.join(near)}?" if near else f"it has {', '.join(known[:_SHOWN]) or 'nothing to call'}"
    return f"model={name}: {where} has no {part}; {hint}"


@contextlib.contextmanager
def _working_directory_first() -> Iterator[None]:
    """While this context is open, modules are searched in the working directory first; afterwards there too, but last.

    First, as with `python -c`, because train.py's own folder must not hide the user's modules. Last afterwards, so that
    a folder of the user's that is named like a library does not hide that library. New worker processes inherit the
    path.
    """
    here = os.getcwd()
    before = list(sys.path)
    sys.path.insert(0, here)
    try:
        yield
    finally:
        if sys.path[0] == here:
            sys.path.pop(0)
        if here not in sys.path and "" not in before:
            sys.path.append(here)


@contextlib.contextmanager
def _undisturbed() -> Iterator[None]:
    """Keeps an imported script from reading our arguments as its own and from changing the working directory."""
    arguments, here = sys.argv, os.getcwd()
    sys.argv = [arguments[0] if arguments else ""]
    try:
        yield
    finally:
        sys.argv = arguments
        os.chdir(here)
