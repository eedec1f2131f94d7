"""The loops whose machine code decides, written in LLVM.

Numba's own would pass whole arrays for every run of a few postings, and count in 64 bits where 32 do.
"""

from typing import Any

from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

#: Sums that are compared at once, and the bytes at which they may be loaded whole.
WIDE, ALIGN = 16, 64
F, I32, I64 = ir.FloatType(), ir.IntType(32), ir.IntType(64)


def _data(context: Any, builder: Any, kind: Any, array: Any) -> Any:
    """Pointer to an array's first element."""
    return context.make_array(kind)(context, builder, array).data


def _add_function(module: Any) -> Any:
    """(acc, docs, codes, table, weight, begin, end): see add. Not inlined: its pointers would leave their registers."""
    known = module.globals.get("add_postings")
    if known is not None:
        return known
    floats, places, octets = (kind.as_pointer() for kind in (F, ir.IntType(16), ir.IntType(8)))
    function = ir.Function(
        module, ir.FunctionType(ir.VoidType(), [floats, places, octets, floats, F, I64, I64]), "add_postings"
    )
    function.linkage = "internal"
    function.attributes.add("noinline")
    acc, docs, codes, table, weight, begin, end = function.args
    for pointer in (acc, docs, codes, table):
        pointer.add_attribute("noalias")
    builder = ir.IRBuilder(function.append_basic_block("start"))
    with cgutils.for_range_slice(builder, begin, end, ir.Constant(I64, 1), I64) as (i, _):
        doc = builder.zext(builder.load(builder.gep(docs, [i])), I64)
        code = builder.zext(builder.load(builder.gep(codes, [i])), I64)
        at = builder.gep(acc, [doc])
        fused = ("contract",)  # A multiply-add where the machine has one.
        product = builder.fmul(weight, builder.load(builder.gep(table, [code])), flags=fused)
        builder.store(builder.fadd(product, builder.load(at), flags=fused), at)
    builder.ret_void()
    return function


@intrinsic  # type: ignore[untyped-decorator]
def add(typing: Any, acc: Any, docs: Any, codes: Any, begin: Any, end: Any, table: Any, weight: Any) -> Any:
    """acc[doc] += weight * table[code] for the postings begin to end: an array each, so more than six arguments."""
    signature = types.void(acc, docs, codes, types.int64, types.int64, table, types.float32)

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        acc, docs, codes, table = (_data(context, builder, signature.args[i], args[i]) for i in (0, 1, 2, 5))
        builder.call(_add_function(builder.module), [acc, docs, codes, table, args[6], args[3], args[4]])
        return context.get_dummy_value()

    return signature, generate


@intrinsic  # type: ignore[untyped-decorator]
def clear(typing: Any, array: Any, size: Any) -> Any:
    """array[:size] = 0, float32."""
    signature = types.void(array, types.int64)

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        data = _data(context, builder, signature.args[0], args[0])
        cgutils.memset(builder, data, builder.mul(args[1], ir.Constant(I64, 4)), 0)
        return context.get_dummy_value()

    return signature, generate


@intrinsic  # type: ignore[untyped-decorator]
def highest(typing: Any, array: Any, vectors: Any) -> Any:
    """The highest of the first vectors of WIDE numbers, or 0."""
    signature = types.float32(array, types.int64)

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        data = _data(context, builder, signature.args[0], args[0])
        vector = ir.VectorType(F, WIDE)
        maximum = cgutils.alloca_once_value(builder, ir.Constant(vector, [0.0] * WIDE))
        with cgutils.for_range_slice(builder, ir.Constant(I64, 0), args[1], ir.Constant(I64, 1), I64) as (i, _):
            value = builder.load(_vector(builder, data, builder.mul(i, ir.Constant(I64, WIDE))), align=ALIGN)
            best = builder.load(maximum)
            builder.store(builder.select(builder.fcmp_ordered(">", value, best), value, best), maximum)
        top, best = ir.Constant(F, 0.0), builder.load(maximum)
        for place in range(WIDE):
            value = builder.extract_element(best, ir.Constant(I32, place))
            top = builder.select(builder.fcmp_ordered(">", value, top), value, top)
        return top

    return signature, generate


@intrinsic  # type: ignore[untyped-decorator]
def at_least(typing: Any, base: Any, own: Any, start: Any, bound: Any) -> Any:
    """One bit for each place from `start` on, a multiple of WIDE: whether base + own is >= bound there."""
    signature = types.int64(base, own, types.int64, types.float32)

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        value = _sum(builder, [_data(context, builder, signature.args[i], args[i]) for i in (0, 1)], args[2])
        mask = builder.fcmp_ordered(">=", value, _repeated(builder, args[3], value.type))
        return builder.zext(builder.bitcast(mask, ir.IntType(WIDE)), I64)

    return signature, generate


@intrinsic  # type: ignore[untyped-decorator]
def ones(typing: Any, mask: Any) -> Any:
    """How many bits are set."""
    signature = types.int64(types.int64)

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.ctpop(args[0])

    return signature, generate


@intrinsic  # type: ignore[untyped-decorator]
def prefetch(typing: Any, array: Any, begin: Any, end: Any) -> Any:
    """Ask the second-level cache for array[begin:end]."""
    signature = types.void(array, types.int64, types.int64)

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        data = _data(context, builder, signature.args[0], args[0])
        octets = ir.IntType(8).as_pointer()
        kind = ir.FunctionType(ir.VoidType(), [octets, I32, I32, I32])
        ask = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
        step = ir.Constant(I64, ALIGN // (signature.args[0].dtype.bitwidth // 8))
        with cgutils.for_range_slice(builder, args[1], args[2], step, I64) as (i, _):
            at = builder.bitcast(builder.gep(data, [i]), octets)
            builder.call(ask, [at, *(ir.Constant(I32, n) for n in (0, 2, 1))])
        return context.get_dummy_value()

    return signature, generate


def _sum(builder: Any, arrays: Any, start: Any) -> Any:
    """The sum of two vectors that start at the same place."""
    return builder.fadd(*(builder.load(_vector(builder, data, start), align=ALIGN) for data in arrays))


def _vector(builder: Any, data: Any, start: Any) -> Any:
    """Pointer to the vector that starts at data[start]."""
    return builder.bitcast(builder.gep(data, [start]), ir.VectorType(F, WIDE).as_pointer())


def _repeated(builder: Any, value: Any, vector: Any) -> Any:
    """A vector of one value."""
    first = builder.insert_element(ir.Constant(vector, ir.Undefined), value, ir.Constant(I32, 0))
    return builder.shuffle_vector(
        first, ir.Constant(vector, ir.Undefined), ir.Constant(ir.VectorType(I32, WIDE), [0] * WIDE)
    )
