"""Row sums that run through a loop and are only scaled in between, as in a running softmax: each thread may add up its
own part, and threads exchange once, after the loop."""

from mortice.tile.ir import expr as e
from mortice.tile.ir import stmt as s
from mortice.tile.ir.walk import buffers, walk


def deferred_sums(body: s.Block) -> frozenset[str]:
    """Names of such fragments: 0 before a loop of this block, in it added to by one reduction and otherwise only
    multiplied by something else, element by element."""
    found = set()
    for number, loop in enumerate(body):
        if not isinstance(loop, s.For):
            continue
        for x in loop.body:
            if isinstance(x, s.Reduce) and x.op == "sum" and not x.clear:
                name = x.target.buffer.name
                others = [y for y in loop.body if y is not x and _uses(y, name)]
                if all(_scales(y, name) for y in others) and _zero_before(body[:number], name):
                    found.add(name)
    return frozenset(found)


def _uses(x: s.Stmt, name: str) -> bool:
    return any(buffer.name == name for buffer in buffers(x))


def _zero_before(block: s.Block, name: str) -> bool:
    """Filled with 0 and nothing else."""
    users = [x for x in block if _uses(x, name) and not isinstance(x, s.Alloc)]
    return bool(users) and all(
        isinstance(x, s.Fill) and x.value == e.Const(x.value.dtype, 0.0) for x in users
    )


def _scales(x: s.Stmt, name: str) -> bool:
    """A parallel loop that does nothing to the fragment but t[i] = t[i] * factor."""
    if not isinstance(x, s.Parallel):
        return False
    stores = [y for y in x.body if isinstance(y, s.Store) and y.buffer.name == name]
    reads = [y for y in walk(x) if isinstance(y, e.Load) and y.buffer.name == name]
    if len(stores) != 1 or len(reads) != 1:
        return False
    value = stores[0].value
    if not isinstance(value, e.Binary) or value.op != "mul" or reads[0].indices != stores[0].indices:
        return False
    return reads[0] is value.left or reads[0] is value.right
