"""Evaluates arithmetic without ``eval``, such as the anchor sizes of Detectron2's configuration files."""

import ast
import operator
from collections.abc import Callable, Mapping
from typing import Any

_BINARY: dict[type, Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: operator.pow,
}
_UNARY: dict[type, Callable[[Any], Any]] = {ast.UAdd: operator.pos, ast.USub: operator.neg}
_MAX_LENGTH = 10_000  # characters of an expression, and values of a list
_MAX_NUMBER = 2.0**64  # larger integers could take memory and time without end


def evaluate(expression: str) -> Any:
    """Evaluate numbers, ``+ - * / // % **``, lists, tuples and list comprehensions over lists.

    Raises:
        ValueError: the expression has anything else, is too long, or is not Python; its text is not in the message.
    """
    if len(expression) > _MAX_LENGTH:
        raise ValueError("it is too long")
    try:
        return _Evaluation().value(ast.parse(expression.strip(), mode="eval").body, {})
    except (SyntaxError, ArithmeticError, MemoryError, RecursionError) as error:
        raise ValueError(f"it cannot be computed ({type(error).__name__})") from None


class _Evaluation:
    def __init__(self) -> None:
        self.num_values = 0

    def value(self, node: ast.expr, names: Mapping[str, Any]) -> Any:
        """Return the value of a node, a number or nested lists and tuples of numbers."""
        self.num_values += 1
        if self.num_values > _MAX_LENGTH:
            raise ValueError("it has too many values")
        match node:
            case ast.Constant(value=bool()):
                pass
            case ast.Constant(value=int() | float() as number):
                return _bounded(number)
            case ast.Name(id=name) if name in names:
                return names[name]
            case ast.UnaryOp(op=op, operand=operand) if type(op) in _UNARY:
                return _UNARY[type(op)](_number(self.value(operand, names)))
            case ast.BinOp(left=left, op=op, right=right) if type(op) in _BINARY:
                a, b = (_number(self.value(side, names)) for side in (left, right))
                if isinstance(op, ast.Pow):
                    a = float(a) if abs(b) > 64 else a  # overflows where an integer would grow
                return _bounded(_BINARY[type(op)](a, b))
            case ast.List(elts=items):
                return [self.value(item, names) for item in items]
            case ast.Tuple(elts=items):
                return tuple(self.value(item, names) for item in items)
            case ast.ListComp(elt=item, generators=[ast.comprehension(target=ast.Name(id=name), iter=source, ifs=[])]):
                values = self.value(source, names)
                if isinstance(values, (list, tuple)):
                    return [self.value(item, {**names, name: value}) for value in values]
        raise ValueError("it has more than numbers, + - * / // % **, lists and list comprehensions")


def _number(value: Any) -> int | float:
    if isinstance(value, (int, float)):
        return value
    raise ValueError("it computes with something that is not a number")


def _bounded(value: Any) -> int | float:
    if isinstance(value, complex) or abs(value) > _MAX_NUMBER:
        raise ValueError("it has a number beyond 2**64, or none that is real")
    return value
