"""Methods: plain YAML with the line of every entry, so that a fault can be found where it was written."""

from __future__ import annotations

from helpers.messages import CourseError


class Faults(list):
    """Faults so far, as (line, message).

    Parameters
    ----------
    lines
        Path of keys to line, of :func:`parse`.
    """

    def __init__(self, lines):
        super().__init__()
        self.lines = lines

    def add(self, where, seen, expected):
        """Note a fault at a path of keys (a tuple; places in lists count from 1)."""
        line = next(self.lines[where[:n]] for n in range(len(where), -1, -1) if where[:n] in self.lines)
        name = ".".join(str(part) for part in where) or "the file"
        self.append((line, f"line {line}, {name}: {seen}; expected {expected}"))


def _text(path):
    try:
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        near = sorted(one.name for one in path.parent.glob("*.y*ml")) if path.parent.is_dir() else []
        hint = f"did you mean {near[0]}?" if near else "correct the path"
        raise CourseError("no such file", "a YAML file", hint, file=path) from None
    except (OSError, UnicodeDecodeError) as error:
        raise CourseError(f"no text ({error})", "a YAML file in UTF-8", "save it as UTF-8", file=path) from None


def parse(path):
    """Return the plain data of a file, the line of every path of keys, and those that occur twice.

    Raises
    ------
    CourseError
        No such file, no UTF-8, no YAML, tags that would build objects, aliases.
    """
    import yaml

    text = _text(path)

    try:
        if any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text, Loader=yaml.SafeLoader)):
            raise CourseError("an alias (*name)", "plain values", "write the value out", file=path)
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        data = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError) as error:
        mark = getattr(error, "problem_mark", None)
        line = f"line {mark.line + 1}: " if mark else ""
        what = f"{line}{getattr(error, 'problem', None) or error}"
        fix = "indent with spaces, never tabs" if "\t" in text else "mend the line; watch indents, colons and quotes"
        raise CourseError(f"no valid YAML ({what})", "a YAML file", fix, file=path) from None
    lines, repeated, rest = {(): 1}, [], [((), root)]
    while rest:
        where, node = rest.pop()
        if isinstance(node, yaml.MappingNode):
            children = [(key.value, key, value) for key, value in node.value]
        elif isinstance(node, yaml.SequenceNode):
            children = [(number, value, value) for number, value in enumerate(node.value, 1)]
        else:
            continue
        kept = {}  # of a name that occurs twice the last, as YAML does
        for key, mark, value in children:
            here = (*where, key if isinstance(key, (str, int)) else "?")
            if here in kept:
                repeated.append(here)
            kept[here] = value
            lines[here] = mark.start_mark.line + 1
        rest.extend(kept.items())
    return data, lines, repeated
