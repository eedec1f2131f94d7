"""The two loops whose machine code decides, as LLVM vectors: numba's own would not keep the lanes in one register.

Each is a function of its own that is not inlined: inside the counting pass its pointers would be spilled to the stack
and read again for every posting. How many lanes there are is the length of the tuple `width`, so that each number of
them is compiled for itself.
"""

from typing import Any

from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

#: Sums that are compared at once, and the bytes at which they may be loaded whole.
WIDE, ALIGN = 16, 64
F, I32, I64 = ir.FloatType(), ir.IntType(32), ir.IntType(64)


def _function(builder: Any, name: str, result: Any, arguments: list[Any]) -> tuple[Any, Any]:
    """A function of this module, and a builder at its start; None for the builder when it is there already."""
    found = builder.module.globals.get(name)
    if found is not None:
        return found, None
    function = ir.Function(builder.module, ir.FunctionType(result, arguments), name)
    function.linkage = "internal"
    function.attributes.add("noinline")
    for argument in function.args:
        if isinstance(argument.type, ir.PointerType):
            argument.add_attribute("noalias")
    return function, ir.IRBuilder(function.append_basic_block("start"))


def _data(context: Any, builder: Any, kind: Any, array: Any) -> Any:
    """Pointer to an array's first element."""
    return context.make_array(kind)(context, builder, array).data


def _row(builder: Any, data: Any, offset: Any, vector: Any) -> Any:
    """Pointer to the lanes that start at data[offset]."""
    return builder.bitcast(builder.gep(data, [offset]), vector.as_pointer())


def _add_run(builder: Any, lanes: int) -> Any:
    """(acc, docs, codes, table, weights, begin, end, limit) -> place: see add_run."""
    floats, places, bytes_ = (kind.as_pointer() for kind in (F, ir.IntType(16), ir.IntType(8)))
    function, inner = _function(
        builder, f"add_run_{lanes}", I64, [floats, places, bytes_, floats, floats, I64, I64, I64]
    )
    if inner is None:
        return function
    acc, docs, codes, table, weights, begin, end, limit = function.args
    vector, align = ir.VectorType(F, lanes), min(ALIGN, 4 * lanes)
    undefined, zeros = ir.Constant(vector, ir.Undefined), ir.Constant(ir.VectorType(I32, lanes), [0] * lanes)
    weight = inner.load(_row(inner, weights, ir.Constant(I64, 0), vector), align=4)
    before = inner.block
    more, inside, body, after = (function.append_basic_block(name) for name in ("more", "inside", "body", "after"))
    inner.branch(more)
    inner.position_at_end(more)
    i = inner.phi(I64)
    i.add_incoming(begin, before)
    inner.cbranch(inner.icmp_signed("<", i, end), inside, after)
    inner.position_at_end(inside)
    doc = inner.zext(inner.load(inner.gep(docs, [i])), I64)
    inner.cbranch(inner.icmp_signed("<", doc, limit), body, after)
    inner.position_at_end(body)
    code = inner.zext(inner.load(inner.gep(codes, [i])), I64)
    value = inner.insert_element(undefined, inner.load(inner.gep(table, [code])), ir.Constant(I32, 0))
    contract = ("contract",)  # A fused multiply-add where the machine has one.
    product = inner.fmul(weight, inner.shuffle_vector(value, undefined, zeros), flags=contract)
    at = _row(inner, acc, inner.mul(doc, ir.Constant(I64, lanes)), vector)
    inner.store(inner.fadd(product, inner.load(at, align=align), flags=contract), at, align=align)
    i.add_incoming(inner.add(i, ir.Constant(I64, 1)), body)
    inner.branch(more)
    inner.position_at_end(after)
    inner.ret(i)
    return function


@intrinsic  # type: ignore[untyped-decorator]
def add_run(
    typing: Any,
    acc: Any,
    first: Any,
    limit: Any,
    docs: Any,
    codes: Any,
    begin: Any,
    end: Any,
    table: Any,
    weights: Any,
    term: Any,
    width: Any,
) -> Any:
    """acc[doc - first, :] += weights[term, :] * table[code] for the postings from `begin` with doc < limit.

    Returns the place of the first posting that was not added, `end` at most.
    """
    integer = types.int64
    signature = integer(acc, integer, integer, docs, codes, integer, integer, table, weights, integer, width)
    lanes = width.count

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        acc, docs, codes, table, weights = (
            _data(context, builder, signature.args[i], args[i]) for i in (0, 3, 4, 7, 8)
        )
        _, first, limit, _, _, begin, end, _, _, term, _ = args
        size = ir.Constant(I64, lanes)
        shifted = builder.gep(acc, [builder.neg(builder.mul(first, size))])
        weight = builder.gep(weights, [builder.mul(term, size)])
        return builder.call(_add_run(builder, lanes), [shifted, docs, codes, table, weight, begin, end, limit])

    return signature, generate


def _compare(builder: Any, lanes: int) -> Any:
    """(acc, low, high, counts, near, vectors): see compare."""
    floats, integers, masks = F.as_pointer(), I32.as_pointer(), ir.IntType(WIDE).as_pointer()
    function, inner = _function(
        builder, f"compare_{lanes}", ir.VoidType(), [floats, floats, floats, integers, masks, I64]
    )
    if inner is None:
        return function
    acc, low, high, counts, near, vectors = function.args
    narrow, vector, mask = (ir.VectorType(kind, n) for kind, n in zip((F, F, I32), (lanes, WIDE, WIDE), strict=True))
    repeated = ir.Constant(mask, list(range(lanes)) * (WIDE // lanes))
    loads = [inner.load(_row(inner, bound, ir.Constant(I64, 0), narrow), align=4) for bound in (low, high)]
    lows, highs = (inner.shuffle_vector(bound, ir.Constant(narrow, ir.Undefined), repeated) for bound in loads)
    total = cgutils.alloca_once_value(inner, ir.Constant(mask, [0] * WIDE))
    with cgutils.for_range_slice(inner, ir.Constant(I64, 0), vectors, ir.Constant(I64, 1), I64) as (i, _):
        at = _row(inner, acc, inner.mul(i, ir.Constant(I64, WIDE)), vector)
        value = inner.load(at, align=ALIGN)
        inner.store(ir.Constant(vector, [0.0] * WIDE), at, align=ALIGN)
        above = inner.fcmp_ordered(">", value, highs)
        between = inner.xor(inner.fcmp_ordered(">=", value, lows), above)
        inner.store(inner.bitcast(between, ir.IntType(WIDE)), inner.gep(near, [i]))
        inner.store(inner.sub(inner.load(total), inner.sext(above, mask)), total)
    inner.store(inner.load(total), _row(inner, counts, ir.Constant(I64, 0), mask), align=4)
    inner.ret_void()
    return function


@intrinsic  # type: ignore[untyped-decorator]
def compare(typing: Any, acc: Any, low: Any, high: Any, counts: Any, near: Any, vectors: Any, width: Any) -> Any:
    """Compare the first vectors of WIDE sums in `acc` with the bounds of their lanes, and clear them.

    counts[i] = how many at place i of their vector are > high; near[v] = one bit for each sum of vector v that is not,
    but >= low.
    """
    signature = types.void(acc, low, high, counts, near, types.int64, width)
    lanes = width.count

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        arrays = [_data(context, builder, signature.args[i], args[i]) for i in range(5)]
        builder.call(_compare(builder, lanes), [*arrays, args[5]])
        return context.get_dummy_value()

    return signature, generate
