"""`class == 282 and probability > 0.5` → a filter of rows. Parsed, checked, and never evaluated as Python.

Columns: `index key path sha256 asked class label logit probability seconds error`. Comparisons `== != < <= > >=` (also
`0.2 < probability < 0.5`), `in ("tabby", "tiger cat")`, `"cat" in label`, `error is None`, and `and or not ( )`.
"""

from __future__ import annotations

import ast
import io
import tokenize
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pyarrow.compute as pc

NUMBERS = ("index", "class", "logit", "probability", "file_size", "file_mtime_ns", "seconds")
TEXTS = ("key", "path", "sha256", "asked", "label", "error")
HINT = "such as: class == 282 and probability > 0.5"

_LONGEST = 2000
_ALIAS = "class_"


class WhereError(ValueError):
    """An expression that selects nothing sensible; the message says what is wrong with it."""


def parse(text: str) -> pc.Expression:
    """An expression over the columns of a run.

    Args:
        text: see the module.

    Raises:
        WhereError: anything else.
    """
    if len(text) > _LONGEST:
        raise WhereError(f"--where: longer than {_LONGEST} letters")
    if not text.isprintable():  # Python 3.12's tokenizer answers a NUL with a SystemError
        raise WhereError(f"--where {text!r}: holds control characters; {HINT}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of odd escapes in texts: they are compared as they are
            tree = ast.parse(_without_keyword(text).strip(), mode="eval")
        return _Builder(text).condition(tree.body)
    except WhereError:
        raise
    except (SyntaxError, ValueError, tokenize.TokenError, RecursionError, MemoryError):
        raise WhereError(f"--where {text!r}: not an expression; {HINT}") from None


def _without_keyword(text: str) -> str:
    """`class` is a column here, and a keyword of Python's grammar."""
    tokens = []
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.NAME and token.string == _ALIAS:
            raise WhereError(f"--where: unknown column {_ALIAS!r}; did you mean class?")
        is_class = token.type == tokenize.NAME and token.string == "class"
        tokens.append((token.type, _ALIAS if is_class else token.string))
    return tokenize.untokenize(tokens)


class _Builder:
    """Walks the tree; whatever it does not know is refused."""

    def __init__(self, text: str) -> None:
        self.text = text

    def wrong(self, what: str) -> WhereError:
        return WhereError(f"--where {self.text!r}: {what}; {HINT}")

    def condition(self, node: ast.expr) -> pc.Expression:
        if isinstance(node, ast.BoolOp):
            found = self.condition(node.values[0])
            for value in node.values[1:]:
                one = self.condition(value)
                found = found & one if isinstance(node.op, ast.And) else found | one
            return found
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
            return ~self.condition(node.operand)
        if isinstance(node, ast.Compare):
            sides = [node.left, *node.comparators]
            found = None
            for left, operator, right in zip(sides, node.ops, sides[1:], strict=False):
                one = self.comparison(left, operator, right)
                found = one if found is None else found & one
            return found
        raise self.wrong(f"{ast.unparse(node).replace(_ALIAS, 'class')!r} is no comparison")

    def comparison(self, left: ast.expr, operator: ast.cmpop, right: ast.expr) -> pc.Expression:
        import pyarrow.compute as pc

        if isinstance(operator, ast.In | ast.NotIn):
            found = self._membership(left, right)
            return ~found if isinstance(operator, ast.NotIn) else found
        name = self.column(left)
        turned = name is None
        if name is None:
            name, right = self.column(right), left
        if name is None:
            raise self.wrong("a comparison needs a column on one side")
        value = self.constant(right)
        if value is None:
            if isinstance(operator, ast.Is | ast.Eq):
                return pc.field(name).is_null()
            if isinstance(operator, ast.IsNot | ast.NotEq):
                return pc.field(name).is_valid()
            raise self.wrong("None is compared with `is` or `is not`")
        self._same_kind(name, value)
        compare = _OPERATORS.get(type(operator))
        if compare is None:
            raise self.wrong("unknown comparison")
        return compare(pc.scalar(value), pc.field(name)) if turned else compare(pc.field(name), pc.scalar(value))

    def _membership(self, left: ast.expr, right: ast.expr) -> pc.Expression:
        import pyarrow.compute as pc

        name = self.column(right)
        if name is not None:
            piece = self.constant(left)
            if name not in TEXTS or not isinstance(piece, str):
                raise self.wrong(f"`in {name}` needs a text before it and a column of text")
            return pc.match_substring(pc.field(name), piece)
        name = self.column(left)
        if name is None or not isinstance(right, ast.Tuple | ast.List) or not right.elts:
            raise self.wrong("`in` needs a column before it and values in parentheses after it")
        values = [self.constant(one) for one in right.elts]
        for value in values:
            self._same_kind(name, value)
        found = None
        for value in values:
            one = pc.field(name) == pc.scalar(value)
            found = one if found is None else found | one
        return found

    def column(self, node: ast.expr) -> str | None:
        if not isinstance(node, ast.Name):
            return None
        name = "class" if node.id == _ALIAS else node.id
        if name not in (*NUMBERS, *TEXTS):
            raise self.wrong(f"unknown column {name!r}; known: {', '.join((*NUMBERS, *TEXTS))}")
        return name

    def constant(self, node: ast.expr) -> Any:
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
            value = self.constant(node.operand)
            if isinstance(value, int | float):
                return -value
        if isinstance(node, ast.Constant) and (
            node.value is None or (isinstance(node.value, int | float | str) and not isinstance(node.value, bool))
        ):
            if isinstance(node.value, int) and abs(node.value) >= 2**63:
                raise self.wrong("a number beyond 64 bits")
            if isinstance(node.value, str) and not node.value.isascii():
                try:
                    node.value.encode()
                except UnicodeEncodeError:
                    raise self.wrong("a text that is not Unicode") from None
            return node.value
        raise self.wrong(f"{ast.unparse(node).replace(_ALIAS, 'class')!r} is neither a column nor a number or 'text'")

    def _same_kind(self, name: str, value: Any) -> None:
        if value is None or isinstance(value, str) != (name in TEXTS):
            kind = "a text in quotes" if name in TEXTS else "a number"
            raise self.wrong(f"{name} is compared with {kind}, not {value!r}")


_OPERATORS: dict[type[ast.cmpop], Callable[[Any, Any], Any]] = {
    ast.Eq: lambda a, b: a == b,
    ast.NotEq: lambda a, b: a != b,
    ast.Lt: lambda a, b: a < b,
    ast.LtE: lambda a, b: a <= b,
    ast.Gt: lambda a, b: a > b,
    ast.GtE: lambda a, b: a >= b,
}
