"""Judge prompts from the user's copy of an official script.

Several official scorers hold their prompts as string literals in Python code. This repository does not copy
them: they are read out of the downloaded file, whose code is never executed. Literals, f-strings, lists,
dicts, subscripts, names and the methods of _METHODS are understood.
"""

import ast
from collections.abc import Mapping
from typing import Any

from etils import epath

from unilip_jax.scores import records

# Methods of strings and dicts that may occur in the expression of a prompt.
_METHODS = {(str, "format"), (str, "replace"), (str, "strip"), (str, "join"), (dict, "get")}


class Script:
  """Holds the syntax tree of an official script."""

  def __init__(self, path: epath.PathLike, what: str):
    """Parses a script.

    Args:
      path: of the script.
      what: where to get it, for errors.

    Raises:
      FileNotFoundError: if it is absent.
      ValueError: if it is not Python.
    """
    self._path = records.existing(path, what)
    self._what = what
    try:
      self._tree = ast.parse(records.read_text(self._path))
    except (SyntaxError, ValueError, RecursionError) as error:
      raise ValueError(f"{path} is not a Python script: {error}; expected {what}") from error

  def constant(self, name: str) -> str:
    """Returns the string that the script assigns to a global name.

    Raises:
      ValueError: if there is none.
    """
    for node in self._tree.body:
      if isinstance(node, ast.Assign) and any(
          isinstance(t, ast.Name) and t.id == name for t in node.targets):
        return self.evaluate(node.value, {})
    raise self._unexpected(f"no global {name}")

  def string_with(self, part: str) -> str:
    """Returns the shortest string literal of the script that contains a part.

    Raises:
      ValueError: if there is none.
    """
    found = [node.value for node in ast.walk(self._tree)
             if isinstance(node, ast.Constant) and isinstance(node.value, str) and part in node.value]
    if not found:
      raise self._unexpected(f"no string with {part!r}")
    return min(found, key=len)

  def messages(self, record: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Evaluates the function that returns chat messages about a record and an image.

    Args:
      record: value of every parameter whose name is not that of an image.

    Returns:
      Messages with "role" and "content"; images are empty data URLs.

    Raises:
      ValueError: if there is no such function.
    """
    function, value = self._messages_function()
    names = {a.arg: "" if "image" in a.arg.lower() else record for a in function.args.args}
    for statement in function.body:
      if isinstance(statement, ast.Assign) and isinstance(statement.targets[0], ast.Name):
        names[statement.targets[0].id] = self.evaluate(statement.value, names)
    return self.evaluate(value, names)

  def _messages_function(self) -> tuple[ast.FunctionDef, ast.expr]:
    for node in ast.walk(self._tree):
      if isinstance(node, ast.FunctionDef) and isinstance(node.body[-1], ast.Return):
        value = node.body[-1].value
        if isinstance(value, ast.List) and value.elts and all(map(_has_role, value.elts)):
          return node, value
    raise self._unexpected("no function that returns a list of chat messages")

  def evaluate(self, node: ast.expr, names: Mapping[str, Any]) -> Any:
    """Evaluates literals, f-strings, lists, dicts, names and subscripts.

    Args:
      node: an expression.
      names: {name: value} of variables.

    Raises:
      ValueError: for any other expression.
    """
    match node:
      case ast.Constant():
        return node.value
      case ast.Name() if node.id in names:
        return names[node.id]
      case ast.Name():
        return self.constant(node.id)
      case ast.Call(func=ast.Attribute()):
        owner = self.evaluate(node.func.value, names)
        if (type(owner), node.func.attr) in _METHODS:
          keywords = {k.arg: self.evaluate(k.value, names) for k in node.keywords}
          return getattr(owner, node.func.attr)(*(self.evaluate(a, names) for a in node.args), **keywords)
      case ast.JoinedStr():
        return "".join(str(self.evaluate(v, names)) for v in node.values)
      case ast.FormattedValue(conversion=-1, format_spec=None):
        return self.evaluate(node.value, names)
      case ast.Subscript():
        return self.evaluate(node.value, names)[self.evaluate(node.slice, names)]
      case ast.List() | ast.Tuple():
        return [self.evaluate(e, names) for e in node.elts]
      case ast.Dict():
        return {self.evaluate(k, names): self.evaluate(v, names)
                for k, v in zip(node.keys, node.values)}
      case ast.BinOp(op=ast.Add()):
        return self.evaluate(node.left, names) + self.evaluate(node.right, names)
    raise self._unexpected(f"line {node.lineno}: {ast.unparse(node)[:80]}")

  def _unexpected(self, problem: str) -> ValueError:
    return ValueError(f"{self._path} is of another form than the official script: {problem}; "
                      f"expected {self._what}")


def _has_role(node: ast.expr) -> bool:
  return isinstance(node, ast.Dict) and any(
      isinstance(k, ast.Constant) and k.value == "role" for k in node.keys)
