"""Going through IR: children of a node, and rebuilding with changes. The only code that knows all node types by
their fields, so a new node needs no visitor."""

from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from typing import Any, TypeVar

from mortice.tile.ir.expr import Buffer, Expr, Load, Region
from mortice.tile.ir.stmt import Block, Function, Stmt

Node = Expr | Stmt | Region
N = TypeVar("N", bound=Node)


def children(node: Node) -> Iterator[Node]:
    """Direct children, in field order; the shapes of buffers are not children."""
    for field in fields(node):
        value = getattr(node, field.name)
        for item in value if isinstance(value, tuple) else (value,):
            if isinstance(item, Expr | Stmt | Region):
                yield item


def walk(root: Node | Block) -> Iterator[Node]:
    """A node and all below it, parents first."""
    for node in root if isinstance(root, tuple) else (root,):
        yield node
        for child in children(node):
            yield from walk(child)


def buffers(root: Node | Block) -> Iterator[Buffer]:
    """Every mention of a buffer below, in order, with repeats."""
    for node in walk(root):
        for field in fields(node):
            value = getattr(node, field.name)
            for item in value if isinstance(value, tuple) else (value,):
                if isinstance(item, Buffer):
                    yield item


def rebuild(node: N, change: Callable[[Node], Any]) -> N:
    """The node with each direct child replaced by change(child). For a statement in a block, change may return a
    tuple of statements, which is spliced in."""
    changed: dict[str, Any] = {}
    for field in fields(node):
        value = getattr(node, field.name)
        if isinstance(value, Expr | Stmt | Region):
            new = change(value)
            if new is not value:
                changed[field.name] = new
        elif isinstance(value, tuple) and any(isinstance(item, Expr | Stmt | Region) for item in value):
            items: list[Any] = []
            for item in value:
                new = change(item) if isinstance(item, Expr | Stmt | Region) else item
                if isinstance(new, tuple):
                    items.extend(new)
                else:
                    items.append(new)
            if tuple(items) != value or any(a is not b for a, b in zip(items, value, strict=False)):
                changed[field.name] = tuple(items)
    return replace(node, **changed) if changed else node


def transform(node: Node, change: Callable[[Node], Any]) -> Any:
    """Bottom up: children first, then change(node)."""
    return change(rebuild(node, lambda child: transform(child, change)))


def transform_block(block: Block, change: Callable[[Node], Any]) -> Block:
    out: list[Stmt] = []
    for statement in block:
        new = transform(statement, change)
        out.extend(new if isinstance(new, tuple) else (new,))
    return tuple(out)


def with_body(function: Function, body: Block) -> Function:
    return replace(function, body=body)


def loads(root: Node | Block) -> Iterator[Load]:
    return (node for node in walk(root) if isinstance(node, Load))
